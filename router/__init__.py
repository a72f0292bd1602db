"""The router: makes several single-writer Chroma nodes look like one Chroma.

`router.core` decides (pure), the modules around it do input and output, `router.server` puts them
together. See docs/ARCHITECTURE.md.
"""
