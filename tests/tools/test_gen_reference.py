"""The reference of the API: what its generator refuses, and that what it says of errors is true."""

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chroma_router.wire.errors import CLASS_BY_REASON, Reason
from tools import gen_reference
from tools.gen_reference import PACKAGE, ROOT, TARGET, Reference, parsed_contract
from tools.reference_errors import (
    INTERNAL_REASONS,
    OF_ONE_CALL,
    ReferenceProblem,
    check_complete,
    joined,
    split_comment,
    stated_errors,
)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(parsed_contract())


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str, str], Reference]:
    """The reference of a contract in which one text of one file is replaced by another."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")

    def change(name: str, old: str, new: str) -> Reference:
        path = tmp_path / "proto" / PACKAGE / name
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")
        return Reference(parsed_contract(tmp_path / "proto"))

    return change


def test_the_committed_reference_agrees_with_the_contract(reference: Reference) -> None:
    assert TARGET.read_text("utf-8") == reference.text()


def test_every_public_call_message_and_field_is_in_it(reference: Reference) -> None:
    text = reference.text()
    contract = parsed_contract()
    for name in gen_reference.PUBLIC:
        file = contract[name].proto
        for service in file.service:
            for method in service.method:
                assert text.count(f"\n### {service.name}.{method.name}\n") == 1
        for message in file.message_type:
            assert text.count(f"\n#### {message.name}\n") == 1
            section = text.split(f"\n#### {message.name}\n")[1].split("\n#### ")[0]
            for field in message.field:
                assert f"| `{field.name}` = {field.number} |" in section
        for enum in file.enum_type:
            for value in enum.value:
                assert f"| `{value.name}` = {value.number} |" in text
    assert "### ShardService" not in text


def test_each_link_within_it_leads_somewhere(reference: Reference) -> None:
    text = reference.text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = [
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings
    ]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= set(anchors)


def test_streams_optionals_maps_and_choices_are_told(reference: Reference) -> None:
    text = reference.text()
    assert "[ScanRequest](#scanrequest) → stream of [ScanResponse](#scanresponse)" in text
    assert "stream of [BulkUpsertRequest](#bulkupsertrequest) → stream of" in text
    assert "| `limit` = 3 | uint32 | optional |" in text
    assert "| `metadata` = 5 | map of string to [MetadataValue](#metadatavalue) |  |" in text
    assert "| `name` = 4 | string | one of `collection` |" in text
    assert "| `ids` = 1 | string | repeated |" in text


# ------------------------------------------------------------------------------------- refusals


def test_a_call_that_states_no_errors_is_refused(
    changed: Callable[[str, str, str], Reference],
) -> None:
    with pytest.raises(ReferenceProblem, match=r"CatalogService\.GetTenant: .*does not state"):
        changed("catalog.proto", "  // Errors: NOT_FOUND (TENANT_NOT_FOUND).\n", "")


def test_a_reason_that_does_not_exist_is_refused(
    changed: Callable[[str, str, str], Reference],
) -> None:
    with pytest.raises(ReferenceProblem, match="TENANT_LOST is no reason"):
        changed("catalog.proto", "NOT_FOUND (TENANT_NOT_FOUND)", "NOT_FOUND (TENANT_LOST)")


def test_a_reason_of_another_status_is_refused(
    changed: Callable[[str, str, str], Reference],
) -> None:
    with pytest.raises(ReferenceProblem, match="TENANT_NOT_FOUND comes with NOT_FOUND, not ABORT"):
        changed("catalog.proto", "NOT_FOUND (TENANT_NOT_FOUND)", "ABORTED (TENANT_NOT_FOUND)")


def test_a_reason_that_no_call_states_is_refused(
    changed: Callable[[str, str, str], Reference],
) -> None:
    with pytest.raises(ReferenceProblem, match="NO_SHARDS: must be stated"):
        changed("catalog.proto", "FAILED_PRECONDITION (NO_SHARDS), ", "")


def test_a_field_without_a_comment_is_refused(
    changed: Callable[[str, str, str], Reference],
) -> None:
    lacking = changed("types.proto", "  // True or false.\n", "")
    with pytest.raises(ReferenceProblem, match=r"MetadataValue\.bool_value has no comment"):
        lacking.text()


def test_a_contract_that_protoc_refuses_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / PACKAGE / "types.proto"
    broken.parent.mkdir(parents=True)
    broken.write_text('syntax = "proto3"; message {')
    with pytest.raises(ReferenceProblem, match="protoc failed"):
        parsed_contract(tmp_path)


def test_an_internal_reason_that_a_call_states_is_refused() -> None:
    stated = {"ABORTED": (Reason.STALE_EPOCH,)}
    with pytest.raises(ReferenceProblem, match=r"STALE_EPOCH: .*not both"):
        check_complete([{"UNKNOWN": tuple(r for r in Reason if r not in INTERNAL_REASONS)}, stated])


@pytest.mark.parametrize(
    "text",
    [
        "NOT_FOUND (COLLECTION_NOT_FOUND)",
        "NOT_FOUND: COLLECTION_NOT_FOUND.",
        "NOT_FOUND (COLLECTION_NOT_FOUND); ABORTED (CONFLICT).",
        "NOT_FOUND (COLLECTION_NOT_FOUND) when it is gone.",
        "NOT_FOUND ().",
        "none",
    ],
)
def test_a_statement_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ReferenceProblem, match="not of the form"):
        stated_errors(text, "here")


def test_a_status_that_is_stated_twice_is_refused() -> None:
    with pytest.raises(ReferenceProblem, match="states NOT_FOUND twice"):
        stated_errors("NOT_FOUND (TENANT_NOT_FOUND), NOT_FOUND (DATABASE_NOT_FOUND).", "here")


# ------------------------------------------------------------------------------------ statements


def test_a_statement_is_read_over_its_lines() -> None:
    states = "Errors: NOT_FOUND (TENANT_NOT_FOUND,\nDATABASE_NOT_FOUND), ABORTED\n(CONFLICT)."
    comment = f"Does it.\n\n{states}"
    said, stated = split_comment(comment, OF_ONE_CALL)
    assert said == "Does it."
    assert stated_errors(stated, "here") == {
        "NOT_FOUND": (Reason.TENANT_NOT_FOUND, Reason.DATABASE_NOT_FOUND),
        "ABORTED": (Reason.CONFLICT,),
    }
    assert stated_errors("none of its own.", "here") == {}


def test_statements_are_joined_in_the_order_of_the_codes() -> None:
    call = {"UNAVAILABLE": (Reason.ENGINE_FAILED,), "NOT_FOUND": (Reason.TENANT_NOT_FOUND,)}
    service = {"UNAVAILABLE": (Reason.SHARD_UNAVAILABLE, Reason.ENGINE_FAILED)}
    both = joined(call, service)
    assert list(both) == ["NOT_FOUND", "UNAVAILABLE"]
    assert both["UNAVAILABLE"] == (Reason.ENGINE_FAILED, Reason.SHARD_UNAVAILABLE)


def test_the_errors_of_a_call_are_its_own_and_its_services(reference: Reference) -> None:
    count = reference.errors["RecordService.Count"]
    assert set(count) == {"NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE"}
    assert Reason.DRAINING not in count["UNAVAILABLE"]  # of every call: stated once
    assert reference.errors["ClusterService.GetVersion"] == {}


def test_what_the_code_can_raise_is_what_is_stated(reference: Reference) -> None:
    """Of every reason that router or node names somewhere, and the other way round."""
    stated = {
        reason
        for errors in [reference.every_call, *reference.errors.values()]
        for reasons in errors.values()
        for reason in reasons
    }
    assert set(_made_reasons()) | {Reason.UNSUPPORTED} == stated | set(INTERNAL_REASONS)


def _made_reasons() -> Iterator[Reason]:
    """The reasons that router and node name, and the defaults of the errors that they make."""
    classes = {kind.__name__: kind for kind in set(CLASS_BY_REASON.values())}
    for package in ("router", "shard_node"):
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "router/core/retry.py":  # decides by reasons, makes none
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                match node:
                    case ast.Attribute(value=ast.Name(id="Reason"), attr=name):
                        yield Reason[name]
                    case ast.Call(func=ast.Name(id=name)) if name in classes:
                        yield classes[name].default_reason


# ------------------------------------------------------------------------------------- the tool


def test_check_writes_nothing_and_fails_on_drift(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "REFERENCE.md"
    target.write_text("old")
    assert gen_reference.main(["--check"], target) == 1
    assert target.read_text() == "old"
    assert "make reference" in capsys.readouterr().err
    assert gen_reference.main([], target) == 0
    assert gen_reference.main(["--check"], target) == 0
    assert target.read_text("utf-8") == TARGET.read_text("utf-8")
