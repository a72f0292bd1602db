"""Generate the Python code of the contract from proto/ into the package chroma_router.v1.

    python tools/gen_proto.py            write the files, remove those without a proto
    python tools/gen_proto.py --check    write nothing; exit 1 when the committed files differ

Per `proto/chroma_router/v1/x.proto`: `x_pb2.py` and `x_pb2.pyi` (protoc) and, when it has a
service, `x_pb2_grpc.py` (grpc_tools) and `x_pb2_grpc.pyi` (mypy-protobuf: typed stubs and
servicers, for asyncio too). The generators are those of requirements.lock: the output is the same
everywhere.
"""

import argparse
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
PACKAGE = Path("chroma_router/v1")
GENERATED = "*_pb2*.py*"


class GenerationError(Exception):
    """The generators refused the contract, or could not be run."""


def protos() -> list[Path]:
    """The contract's files, in a fixed order."""
    found = sorted((PROTO_ROOT / PACKAGE).glob("*.proto"))
    if not found:
        raise GenerationError(f"no .proto file in {(PROTO_ROOT / PACKAGE).relative_to(ROOT)}")
    return found


def grpc_stub_plugin() -> Path:
    """mypy-protobuf's plugin, which pip puts beside this interpreter."""
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    if not plugin.exists():
        raise GenerationError(
            "protoc-gen-mypy_grpc is missing: run `make venv`, then .venv/bin/python"
        )
    return plugin


def generate(into: Path) -> None:
    """Run every generator, below the directory `into`."""
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--proto_path={resources.files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy_grpc={grpc_stub_plugin()}",
            f"--python_out={into}",
            f"--pyi_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_grpc_out=quiet:{into}",
            *(str(proto) for proto in protos()),
        ]
    )
    if code != 0:
        raise GenerationError(f"protoc failed with exit code {code}")
    # A contract file without a service gives empty gRPC files: leave them out.
    for proto in protos():
        if not any(line.startswith("service ") for line in proto.read_text("utf-8").splitlines()):
            for empty in (into / PACKAGE).glob(f"{proto.stem}_pb2_grpc.py*"):
                empty.unlink()


def contents(package: Path) -> dict[str, bytes]:
    """The generated files of a package directory: name to content."""
    return {path.name: path.read_bytes() for path in sorted(package.glob(GENERATED))}


def write(fresh: dict[str, bytes]) -> None:
    """Make the package hold exactly the fresh files, touching only what differs."""
    package = ROOT / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    old = contents(package)
    for name in sorted(old.keys() - fresh.keys()):
        (package / name).unlink()
        print(f"removed {PACKAGE / name}")
    for name, content in fresh.items():
        if old.get(name) != content:
            (package / name).write_bytes(content)
            print(f"wrote {PACKAGE / name}")
    print(f"{len(fresh)} generated files are up to date")


def drift(fresh: dict[str, bytes]) -> list[str]:
    """What differs between the committed files and the fresh ones, one line each."""
    old = contents(ROOT / PACKAGE)
    return [
        *(f"{PACKAGE / name}: missing" for name in sorted(fresh.keys() - old.keys())),
        *(f"{PACKAGE / name}: belongs to no proto" for name in sorted(old.keys() - fresh.keys())),
        *(
            f"{PACKAGE / name}: out of date"
            for name in sorted(old.keys() & fresh.keys())
            if old[name] != fresh[name]
        ),
    ]


def main() -> int:
    """Generate or check; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            generate(Path(scratch))
            fresh = contents(Path(scratch) / PACKAGE)
    except GenerationError as error:
        print(f"gen_proto: {error}", file=sys.stderr)
        return 1
    if not arguments.check:
        write(fresh)
        return 0
    problems = drift(fresh)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("The generated code differs from proto/: run `make proto`.", file=sys.stderr)
        return 1
    print(f"{len(fresh)} generated files agree with proto/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
