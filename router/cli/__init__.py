"""The command line `chroma-router`. One module for each command, imported when it is used."""
