"""Write docs/REFERENCE.md, the reference of the gRPC API, from the comments of the contract.

    python -m tools.gen_reference            write it
    python -m tools.gen_reference --check    write nothing; exit 1 when the committed file differs

protoc parses the contract and hands over every comment with its place (source info), so that what
is read here is what a compiler reads. A call without stated errors, a field without a comment and
a reason that does not fit its status are refused.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from tools.reference_errors import (
    EVERY_CALL,
    EVERY_CALL_OF_SERVICE,
    OF_ONE_CALL,
    Errors,
    ReferenceProblem,
    check_complete,
    joined,
    split_comment,
    stated_errors,
)
from tools.reference_head import head

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "chroma_router/v1"
TARGET = ROOT / "docs" / "REFERENCE.md"

PUBLIC = ("records.proto", "catalog.proto", "cluster.proto", "types.proto")
"""The files that an application uses, in the order of the reference; the others are internal."""
CONVENTIONS = "types.proto"
"""The file whose head holds what is said of all of them."""

SCALARS: Mapping[str, str] = {
    "bool": "true or false",
    "bytes": "any bytes",
    "double": "64-bit float of IEEE 754",
    "float": "32-bit float of IEEE 754",
    "int64": "64-bit signed integer",
    "string": "text, valid UTF-8; a request with any other is refused",
    "uint32": "32-bit unsigned integer",
    "uint64": "64-bit unsigned integer",
}
"""What the scalar types of Protocol Buffers that the contract uses can hold."""

# Numbers of fields in descriptor.proto: they are the steps of a comment's path.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE, _FILE_SYNTAX = 4, 5, 6, 12
_MESSAGE_FIELD, _ENUM_VALUE, _SERVICE_METHOD = 2, 2, 2

_Place = tuple[int, ...]


@dataclass(frozen=True)
class ContractFile:
    """One .proto file with its comments."""

    proto: FileDescriptorProto

    @property
    def name(self) -> str:
        """Its name without the package's directory."""
        return self.proto.name.removeprefix(f"{PACKAGE}/")

    @cached_property
    def _comments(self) -> Mapping[_Place, str]:
        found = {}
        for location in self.proto.source_code_info.location:
            lines = location.leading_comments.splitlines()
            found[tuple(location.path)] = "\n".join(line.removeprefix(" ") for line in lines)
        return found

    def comment(self, what: str, *place: int) -> str:
        """The comment above an element. Raises ReferenceProblem when it has none."""
        text = self._comments.get(place, "").strip()
        if not text:
            raise ReferenceProblem(f"{self.name}: {what} has no comment; say what it is")
        return text


def parsed_contract(root: Path = ROOT / "proto") -> dict[str, ContractFile]:
    """The contract's files below `root`, by name. Raises ReferenceProblem if protoc refuses it."""
    files = sorted((root / PACKAGE).glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "contract"
        code = protoc.main(
            [
                "protoc",
                f"--proto_path={root}",
                f"--descriptor_set_out={out}",
                "--include_source_info",
                *(str(path) for path in files),
            ]
        )
        if code != 0:
            raise ReferenceProblem(f"protoc failed with exit code {code}")
        contract = FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in map(ContractFile, contract.file)}


class Reference:
    """The reference of a contract. Making one raises ReferenceProblem for what it lacks."""

    def __init__(self, contract: Mapping[str, ContractFile]) -> None:
        self._public = [contract[name] for name in PUBLIC]
        self._internal = [file for name, file in contract.items() if name not in PUBLIC]
        conventions, stated = split_comment(
            contract[CONVENTIONS].comment("the file", _FILE_SYNTAX), EVERY_CALL
        )
        self._conventions = conventions
        self.every_call = stated_errors(stated, CONVENTIONS)
        self.errors = {
            f"{service.name}.{method.name}": self._errors_of(file, s, m)
            for file, s, service in self._services()
            for m, method in enumerate(service.method)
        }
        check_complete([self.every_call, *self.errors.values()])
        self._messages = {
            f".{file.proto.package}.{message.name}": (file, m, message)
            for file in self._public
            for m, message in enumerate(file.proto.message_type)
        }

    def text(self) -> str:
        """The whole document."""
        lines = [head(self.every_call), *self._encoding()]
        for file, s, service in self._services():
            lines += self._service(file, s, service)
        lines += self._types()
        lines += self._internal_part()
        return "\n".join(lines).rstrip("\n") + "\n"

    def _services(self) -> Iterator[tuple[ContractFile, int, ServiceDescriptorProto]]:
        for file in self._public:
            for s, service in enumerate(file.proto.service):
                yield file, s, service

    # --------------------------------------------------------------------------------- errors

    def _errors_of(self, file: ContractFile, s: int, m: int) -> Errors:
        """The errors of a call: its own and its service's, without those of every call."""
        service = file.proto.service[s]
        place = f"{service.name}.{service.method[m].name}"
        _, own = split_comment(
            file.comment(place, _FILE_SERVICE, s, _SERVICE_METHOD, m), OF_ONE_CALL
        )
        _, shared = split_comment(
            file.comment(service.name, _FILE_SERVICE, s), EVERY_CALL_OF_SERVICE
        )
        both = joined(
            stated_errors(own, place),
            stated_errors(shared, service.name) if shared is not None else {},
        )
        left = {
            status: tuple(r for r in reasons if r not in self.every_call.get(status, ()))
            for status, reasons in both.items()
        }
        return {status: reasons for status, reasons in left.items() if reasons}

    # -------------------------------------------------------------------------------- services

    def _encoding(self) -> list[str]:
        return ["## Conventions", "", *_prose(self._conventions), ""]

    def _service(self, file: ContractFile, s: int, service: ServiceDescriptorProto) -> list[str]:
        said, _ = split_comment(file.comment(service.name, _FILE_SERVICE, s), EVERY_CALL_OF_SERVICE)
        lines = [f"## {service.name}", "", f"`{file.proto.package}.{service.name}`", ""]
        lines += [*_prose(said), ""]
        for m, method in enumerate(service.method):
            lines += self._call(file, (_FILE_SERVICE, s, _SERVICE_METHOD, m), service, method)
        return lines

    def _call(
        self,
        file: ContractFile,
        place: _Place,
        service: ServiceDescriptorProto,
        method: MethodDescriptorProto,
    ) -> list[str]:
        name = f"{service.name}.{method.name}"
        said, _ = split_comment(file.comment(name, *place), OF_ONE_CALL)
        request, response = _short(method.input_type), _short(method.output_type)
        asked = f"{'stream of ' * method.client_streaming}[{request}](#{request.lower()})"
        answered = f"{'stream of ' * method.server_streaming}[{response}](#{response.lower()})"
        lines = [f"### {name}", "", f"{asked} → {answered}", "", *_prose(said), ""]
        lines += [*_errors_text(self.errors[name]), ""]
        for type_name in (method.input_type, method.output_type):
            lines += self._message(*self._messages[type_name])
        return lines

    # ----------------------------------------------------------------------------------- types

    def _types(self) -> list[str]:
        shown = {
            name
            for _, _, service in self._services()
            for method in service.method
            for name in (method.input_type, method.output_type)
        }
        lines = ["## Types", ""]
        for name, place in self._messages.items():
            if name not in shown:
                lines += self._message(*place)
        for file in self._public:
            for e, enum in enumerate(file.proto.enum_type):
                lines += _enum(file, e, enum)
        lines += ["#### Scalar types", "", "| type | holds |", "| --- | --- |"]
        lines += [f"| {name} | {holds} |" for name, holds in SCALARS.items()]
        return [*lines, ""]

    def _message(self, file: ContractFile, m: int, message: DescriptorProto) -> list[str]:
        place = (_FILE_MESSAGE, m)
        lines = [f"#### {message.name}", "", *_prose(file.comment(message.name, *place)), ""]
        if not message.field:
            return [*lines, "It has no fields.", ""]
        entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
        lines += ["| field | type | label | says |", "| --- | --- | --- | --- |"]
        for f, field in enumerate(message.field):
            said = file.comment(f"{message.name}.{field.name}", *place, _MESSAGE_FIELD, f)
            kind = self._type(field, entries)
            lines.append(
                f"| `{field.name}` = {field.number} | {kind} | {_label(field, message)} | "
                f"{_cell(said)} |"
            )
        return [*lines, ""]

    def _type(self, field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto]) -> str:
        entry = entries.get(_short(field.type_name))
        if entry is not None:
            key, value = (self._type(part, {}) for part in entry.field)
            return f"map of {key} to {value}"
        if field.type_name:
            name = _short(field.type_name)
            return f"[{name}](#{name.lower()})"
        scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        if scalar not in SCALARS:
            raise ReferenceProblem(f"{field.name}: say in SCALARS what a {scalar} can hold")
        return scalar

    def _internal_part(self) -> list[str]:
        lines = ["## Internal", "", "Not for applications; may change with any release.", ""]
        for file in self._internal:
            said = " ".join(file.comment("the file", _FILE_SYNTAX).split())
            lines.append(f"- `{file.name}`: {said}")
        return lines


def _label(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """What is to know of a field's presence: repeated, optional, or one of several."""
    if field.proto3_optional:
        return "optional"
    if field.HasField("oneof_index"):
        return f"one of `{message.oneof_decl[field.oneof_index].name}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        is_map = any(
            entry.options.map_entry and _short(field.type_name) == entry.name
            for entry in message.nested_type
        )
        return "" if is_map else "repeated"
    return ""


def _enum(file: ContractFile, e: int, enum: EnumDescriptorProto) -> list[str]:
    lines = [f"#### {enum.name}", "", *_prose(file.comment(enum.name, _FILE_ENUM, e)), ""]
    lines += ["| value | says |", "| --- | --- |"]
    for v, value in enumerate(enum.value):
        said = file.comment(f"{enum.name}.{value.name}", _FILE_ENUM, e, _ENUM_VALUE, v)
        lines.append(f"| `{value.name}` = {value.number} | {_cell(said)} |")
    return [*lines, ""]


def _errors_text(errors: Errors) -> list[str]:
    if not errors:
        return ["Errors: only [those of every call](#reasons)."]
    return [
        "| status | reasons, besides [those of every call](#reasons) |",
        "| --- | --- |",
        *(f"| {status} | {', '.join(reasons)} |" for status, reasons in errors.items()),
    ]


def _short(type_name: str) -> str:
    """A type's name without its package."""
    return type_name.rpartition(".")[2]


def _prose(comment: str) -> list[str]:
    """A comment as Markdown: its paragraphs and lists as they stand."""
    return [_escaped(line) for line in comment.splitlines()]


def _cell(comment: str) -> str:
    """A comment as one cell of a table."""
    return _escaped(" ".join(comment.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("<", "\\<")


def main(arguments: Sequence[str] | None = None, target: Path = TARGET) -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    check = parser.parse_args(arguments).check
    try:
        fresh = Reference(parsed_contract()).text()
    except ReferenceProblem as problem:
        print(f"gen_reference: {problem}", file=sys.stderr)
        return 1
    current = target.read_text("utf-8") if target.exists() else None
    if current == fresh:
        print(f"docs/{target.name} agrees with proto/")
        return 0
    if check:
        print(f"docs/{target.name} differs from proto/: run `make reference`", file=sys.stderr)
        return 1
    target.write_text(fresh, "utf-8")
    print(f"wrote docs/{target.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
