import json
from statistics import median
from typing import Any

from envs.bfcl.apis import functions
from envs.bfcl.prompt import INSTRUCTION, system_prompt
from envs.bfcl.tasks import load_tasks


def schemas(classes: tuple[str, ...], excluded: tuple[str, ...] = (), trim: bool = False) -> dict[str, Any]:
    prompt = system_prompt(classes, excluded, trim)
    assert prompt.startswith(INSTRUCTION)
    heading, *lines = prompt[len(INSTRUCTION) :].splitlines()
    assert heading.endswith(":")
    return {schema["name"]: schema for schema in map(json.loads, lines)}


def test_every_function_of_the_classes_is_listed_but_the_excluded():
    listed = schemas(("MathAPI", "GorillaFileSystem"), ("cp", "mv"))
    expected = {name for name, f in functions().items() if f.api in ("MathAPI", "GorillaFileSystem")}
    assert listed.keys() == expected - {"cp", "mv"}


def test_a_full_schema_is_json_schema():
    cp = schemas(("GorillaFileSystem",))["cp"]
    assert cp["description"] == functions()["cp"].doc["description"]
    assert cp["parameters"]["type"] == cp["response"]["type"] == "object"
    assert cp["parameters"]["required"] == ["source", "destination"]
    add = schemas(("MathAPI",))["add"]
    assert add["parameters"]["properties"]["a"]["type"] == "number"


def test_a_trimmed_schema_says_what_a_call_needs():
    listed = schemas(("GorillaFileSystem",), trim=True)
    assert listed["tail"] == {
        "name": "tail",
        "description": "Display the last part of a file of any extension",
        "parameters": {"file_name": "string", "lines": "integer?"},
    }
    assert listed["pwd"] == {"name": "pwd", "description": "Return the current working directory path"}


def test_trimming_saves_most():
    tasks = load_tasks()
    full, short = (
        median(len(system_prompt(task.data["classes"], task.data["excluded"], trim)) for task in tasks)
        for trim in (False, True)
    )
    assert short < full / 4
