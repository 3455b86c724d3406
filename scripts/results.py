"""Write the result tables of README.md and docs/results.md, and the learning curves, from records and model cards.

    python scripts/results.py    # rewrites the blocks between <!-- results: NAME --> and <!-- end of results -->

Every figure comes from docs/records/*/*.json (see scripts/records.py) or from the cards of the shipped models.
"""

from __future__ import annotations

import re
from pathlib import Path

from curves import write_curves
from keep_run import CONTROLLERS, FAMILIES
from records import RECORDS, ROOT, read_records
from result_tables import BLOCKS, ORDER, Card, Results, with_curves

from wm_agents.models.saved import STORE
from wm_agents.system.files import read_json, read_toml, write_text
from wm_envs.registry import TASKS

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(r"(<!-- results: ([a-z ]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def read_results(records: Path = RECORDS, store: Path = STORE) -> Results:
    """Read all records, cards and published scores."""
    cards = [read_card(task, store / TASKS[task].model) for task in ORDER if task in TASKS]
    return Results(read_records(records), cards, read_toml(records / "published.toml"))


def read_card(task: str, model: Path) -> Card:
    """Read the table of a model card.

    Raises:
        ValueError: a row is missing.
    """
    card = (model / "README.md").read_text(encoding="utf-8")
    config = read_json(model / "config.json", "a model")

    def find(row: str, pattern: str) -> tuple[str, ...]:
        found = re.search(rf"\| {row} \| {pattern}", card)
        if found is None:
            raise ValueError(f"{model / 'README.md'} has no row `{row}` of the form {pattern}")
        return found.groups()

    number = r"(-?[\d.]+)"
    mean, std, ci95 = find("real score", rf"{number} ± {number} \(95 % CI of the mean: ± {number}\)")
    (dream,) = find("dream score", number)
    (steps,) = find("data", r"(\d+) agent steps")
    (wall_s,) = find("training", r"(\d+) s of wall time")
    (cpu,) = find("hardware", r"(.*?), \d+ cores")
    kind = next(kind for kind in CONTROLLERS if (model / f"policy_{kind}.safetensors").exists())
    agent = f"{FAMILIES[config['family']]}, {CONTROLLERS[kind]}"
    return Card(task, agent, float(mean), float(std), float(ci95), float(dream), int(steps), float(wall_s), cpu)


def rewrite(page: str, results: Results) -> str:
    """The text of `page` with all blocks rewritten.

    Raises:
        KeyError: a block has an unknown name.
    """
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]](results) + found[3], page)


def main() -> None:
    results = read_results()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rewrite(before, results)
        if after != before:
            write_text(page, after)
        print(f"{page.relative_to(ROOT)}: {'rewritten' if after != before else 'unchanged'}")
    for task in with_curves(results):
        path = RECORDS / task / "curve.svg"
        written = write_curves(path, task, results.of(task, "dream"), results.of(task, "reference"))
        print(f"{path.relative_to(ROOT)}: {'rewritten' if written else 'unchanged'}")


if __name__ == "__main__":
    main()
