"""What recipes start from, and how settings make them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from improver import cookbook
from improver.cookbook import Material
from improver.errors import CycleError, ImportFileError
from improver.recipes.gift4code import Gift4Code
from improver.recipes.gift4code import Options as GiftOptions
from improver.recipes.inverse_instruct import InverseInstruct
from improver.recipes.inverse_instruct import Options as InverseOptions
from improver.specs import SpecKind
from ops.records import now
from ops.settings import Gift4CodeSettings, ImproverSettings, InverseInstructSettings
from ops.store import Recording, Store
from tests.improver.test_contexts import TABLE, interaction

GOOD = "def double(x):\n    return x * 2\n"


def test_a_word_means_recipes() -> None:
    assert cookbook.names("ilf") == ("ilf",)
    assert cookbook.names("all") == cookbook.RECIPES
    assert set(cookbook.RECIPES) == {"ilf", "gift4code", "inverse_instruct", "preferences"}
    with pytest.raises(CycleError, match="no recipe 'alchemy'; known are ilf"):
        cookbook.names("alchemy")


def test_all_has_preferences_only_where_a_loss_is_chosen() -> None:
    every = ImproverSettings(recipe="all")
    assert cookbook.chosen(every) == ("ilf", "inverse_instruct", "gift4code")
    with_loss = every.model_validate({"recipe": "all", "train": {"preferences": "kto"}})
    assert cookbook.chosen(with_loss) == cookbook.RECIPES
    assert cookbook.chosen(ImproverSettings(recipe="preferences")) == ("preferences",)


def gathered(
    store: Store, *recipes: str, settings: ImproverSettings | None = None, **more: Any
) -> tuple[Material, dict[str, Any]]:
    given = {"before": now(), **more}
    return cookbook.gather(recipes, store, settings or ImproverSettings(), **given)


def test_only_what_a_recipe_needs_is_looked_for(store: Store) -> None:
    assert gathered(store, "ilf")[1].keys() == {"failures"}
    assert gathered(store, "gift4code")[1].keys() == {"contexts", "snippets"}
    assert gathered(store, "inverse_instruct")[1].keys() == {"snippets"}
    kept: list[Any] = []
    material, report = gathered(store, "ilf", cases=kept)
    assert (material.cases, report) == (kept, {}), "cases of an earlier look are taken over"


def test_requests_tables_and_a_corpus_are_found(store: Store, tmp_path: Path) -> None:
    calls = {"entry_point": "f", "examples": [{"input": [n], "output": n} for n in range(3)]}
    old = interaction("What is f?", calls)
    store.add([Recording(interaction=old)])
    began = now()
    late = interaction(f"Sum it up.\n```csv\n{TABLE}```")
    store.add([Recording(interaction=late)])
    (tmp_path / "towns.csv").write_text(TABLE)
    (tmp_path / "code.py").write_text(GOOD)
    sources = {"tables": tmp_path, "corpus": tmp_path, "tables_licence": "CC0"}
    settings = ImproverSettings.model_validate({"sources": sources})
    material, report = gathered(store, *cookbook.RECIPES, settings=settings, before=began)
    # What was asked after the cycle began is left aside: a resumed one must find the same.
    assert [c.title for c in material.contexts] == [old.id, "towns.csv"]
    assert [c.licence for c in material.contexts] == [None, "CC0"]
    assert [c.tenant for c in material.contexts] == ["default", None]
    assert [s.code for s in material.snippets] == [GOOD]
    assert report["contexts"]["contexts"] == 2
    later, _ = gathered(store, "gift4code", settings=settings)
    assert [c.title for c in later.contexts] == [late.id, old.id, "towns.csv"], "newest first"
    sources["max_requests"] = 1
    fewer = ImproverSettings.model_validate({"sources": sources})
    assert len(gathered(store, "gift4code", settings=fewer)[0].contexts) == 2
    aside = gathered(store, "gift4code", settings=fewer, before=began - timedelta(days=1))[0]
    assert [c.title for c in aside.contexts] == ["towns.csv"]


@pytest.mark.parametrize("name", ["tables", "corpus"])
def test_a_source_that_is_not_there_is_named(store: Store, tmp_path: Path, name: str) -> None:
    absent = {"sources": {name: tmp_path / "absent"}}
    with pytest.raises(ImportFileError, match="absent"):
        gathered(store, "gift4code", settings=ImproverSettings.model_validate(absent))


def test_what_is_missing_is_said_with_the_setting(store: Store) -> None:
    settings = ImproverSettings.model_validate({"train": {"preferences": "dpo"}})
    for recipe in cookbook.RECIPES:
        material, report = gathered(store, recipe, settings=settings)
        told = cookbook.missing(recipe, settings, material, report)
        assert told is not None
        assert f"improver.{recipe}.min_rows" in told
        assert told.startswith("0 ")


def test_rows_at_most_count_what_limits_allow(store: Store, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"towns{n}.csv").write_text(TABLE.replace("Town", f"City{n}"))
        (tmp_path / f"code{n}.py").write_text(GOOD.replace("2", str(n + 2)))
    settings = ImproverSettings.model_validate(
        {
            "sources": {"tables": tmp_path, "corpus": tmp_path},
            "gift4code": {"max_contexts": 2, "intents": 3, "programs": 5, "kept_per_intent": 2},
            "inverse_instruct": {"top_k": 2, "summaries": 4},
        }
    )
    material, _ = gathered(store, *cookbook.RECIPES, settings=settings)
    assert cookbook.rows_at_most("gift4code", settings, material) == 2 * 3 * 2
    assert cookbook.rows_at_most("inverse_instruct", settings, material) == 3 * 2
    assert cookbook.rows_at_most("ilf", settings, material) == 0
    counted = {name: cookbook.items(name, settings, material) for name in cookbook.RECIPES}
    assert counted == {"ilf": 0, "gift4code": 2, "inverse_instruct": 3, "preferences": 0}


class Runner:
    workers = 2


def test_defaults_are_those_of_the_recipes() -> None:
    settings = ImproverSettings()
    made = cookbook.make_recipe("gift4code", settings, Material(), Runner())  # type: ignore[arg-type]
    assert isinstance(made, Gift4Code)
    assert made._options == GiftOptions(shares=dict.fromkeys(SpecKind, 0.25))
    made = cookbook.make_recipe("inverse_instruct", settings, Material(), Runner())  # type: ignore[arg-type]
    assert isinstance(made, InverseInstruct)
    assert made._options == InverseOptions()
    with pytest.raises(CycleError, match="no recipe 'all'"):
        cookbook.make_recipe("all", settings, Material(), Runner())  # type: ignore[arg-type]


def test_every_setting_reaches_its_recipe() -> None:
    changed = {
        "gift4code": {
            name: value + 1 if isinstance(value, int) else 0.5
            for name, value in Gift4CodeSettings().model_dump().items()
        },
        "inverse_instruct": {
            name: {bool: False, int: 30, float: 0.3}.get(type(value), value)
            for name, value in InverseInstructSettings().model_dump().items()
        }
        | {"selection": "random", "order": "mixed", "prompt_logprobs": True},
    }
    settings = ImproverSettings.model_validate(changed)
    for recipe, plain in (("gift4code", GiftOptions()), ("inverse_instruct", InverseOptions())):
        made: Any = cookbook.make_recipe(recipe, settings, Material(), Runner())  # type: ignore[arg-type]
        same = {
            name for name, value in vars(made._options).items() if value == getattr(plain, name)
        }
        assert same == set(), recipe


@pytest.mark.parametrize(
    ("chosen", "taken", "cap"), [("none", False, None), ("capped", True, 1.0), ("all", True, None)]
)
def test_people_may_be_left_out_capped_or_not(chosen: str, taken: bool, cap: float | None) -> None:
    settings = ImproverSettings.model_validate({"ilf": {"demonstrations": chosen}})
    made: Any = cookbook.make_recipe("ilf", settings, Material(), Runner())  # type: ignore[arg-type]
    assert made._options.demonstrations is taken
    assert made._options.demonstrations_per_refinement == cap


def test_specs_are_dropped_for_a_share_and_the_kinds_share_the_rest() -> None:
    shares = cookbook.spec_shares(Gift4CodeSettings(spec_dropout=0.4))
    assert shares[SpecKind.NONE] == 0.4
    assert sum(shares.values()) == pytest.approx(1)
    assert (
        len({round(share, 9) for kind, share in shares.items() if kind is not SpecKind.NONE}) == 1
    )
    assert cookbook.spec_shares(Gift4CodeSettings(spec_dropout=1.0))[SpecKind.TYPES] == 0
