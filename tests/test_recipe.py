"""The recipe: errors name line and closest key, every field is described, starters and overrides work."""

from __future__ import annotations

import pytest

from edgekd import recipe
from edgekd.errors import BadInput
from edgekd.recipe import Recipe, Section, View


def test_every_field_has_a_default_and_a_description() -> None:
    def walk(model: type[Section], path: str) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{path}{name} has no description"
            assert not field.is_required(), f"{path}{name} has no default"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                walk(field.annotation, f"{path}{name}.")

    walk(Recipe, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ndistil: {}\n", ["recipe:2", "unknown key 'distil'", "Did you mean 'distill'?"]),
        ("distill:\n  epoch: 3\n", ["recipe:2", "'distill.epoch'", "Did you mean 'epochs'?"]),
        ("distill:\n  student:\n    layer: 2\n", ["recipe:3", "Did you mean 'layers'?"]),
        ("distill:\n  epochs: many\n", ["recipe:2", "distill.epochs", "'many'"]),
        ("distill: 3\n", ["recipe:1", "distill"]),
        ("gate:\n  max_accuracy_drop: -1\n", ["recipe:2", "greater than or equal to 0"]),
        ("name: ../../etc\n", ["recipe:1", "name"]),
        ("export:\n  buckets: [16, 32, 16]\n", ["recipe:2", "export.buckets", "names a length twice"]),
        ("export:\n  buckets: [2, 32]\n", ["recipe:2", "export.buckets", "lengths of 4 tokens or more"]),
        ("export:\n  buckets: []\n", ["recipe:2", "export.buckets", "1 to 8 lengths"]),
        ("export:\n  buckets: 64\n", ["recipe:2", "export.buckets", "64 lengths; a file may have 1 to 8"]),
        ("export:\n  buckets: many\n", ["recipe:2", "export.buckets"]),
        ("name: a\nname: b\n", ["recipe:2", "given twice"]),
        ("a: [\n", ["recipe:2", "not valid YAML"]),
        ("- a\n- b\n", ["mapping of sections"]),
    ],
)
def test_errors_say_where_and_what(text: str, expected: list[str]) -> None:
    with pytest.raises(BadInput) as raised:
        recipe.parse(text)
    for part in expected:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_overrides_parse_yaml_values() -> None:
    made = recipe.parse("{}", overrides=["distill.student.layers=2", "export.targets=[onnx]", "gate.size_mb=3"])
    assert made.distill.student.layers == 2
    assert made.export.targets == ["onnx"]
    assert made.gate.size_mb == 3.0


@pytest.mark.parametrize("override", ["distill.epochs", "=3", "name.x=3", "distill.epochs=[", "distill.epoch=3"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(BadInput):
        recipe.parse("name: a", overrides=[override])


def test_starter_is_a_valid_recipe_and_dump_round_trips() -> None:
    made = recipe.parse(recipe.starter("text-classification"))
    assert made == Recipe(name="text-classification")
    assert recipe.parse(recipe.dump(made)) == made


def test_a_view_refuses_what_a_step_does_not_declare() -> None:
    view = View(Recipe(), ["seed", "data.max_length"])
    assert (view.seed, view.data.max_length) == (0, 64)
    with pytest.raises(AttributeError, match=r"data\.train"):
        _ = view.data.train
    with pytest.raises(AttributeError, match="distill"):
        _ = view.distill


def test_json_schema_accepts_the_starter_and_refuses_an_unknown_key() -> None:
    import jsonschema
    import yaml

    schema = recipe.json_schema()
    value = yaml.safe_load(recipe.starter("text-classification"))
    jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**value, "distil": {}}, schema)
