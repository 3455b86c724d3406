"""The measurements as sections with a summary, a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from wm_agents.evaluation.determinism import SIZES
from wm_agents.evaluation.fidelity.measure import Fidelity
from wm_agents.evaluation.fidelity.open_loop import Ahead
from wm_agents.evaluation.fidelity.plots import (
    plot_closed_loop,
    plot_disagreement,
    plot_ends,
    plot_errors,
    plot_history,
    plot_ranking,
    plot_reliability,
    plot_rewards,
    plot_temperatures,
)


class Section(NamedTuple):
    """A section of the page."""

    key: str
    title: str
    verdict: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plot: Figure | None = None
    note: str = ""


def sections(found: Fidelity) -> list[Section]:
    """All sections, in the order of the page."""
    makers = (_frames, _rewards, _ends, _reliability, _gap, _ranking, _temperatures, _history, _doubt, _seeds)
    return [make(found) for make in makers]


def _frames(found: Fidelity) -> Section:
    loop = found.open_loop
    better, share = 0, ""
    for row in loop.horizons:
        if row.likely.obs_mse is None or row.copy_mse is None or row.likely.obs_mse >= row.copy_mse:
            break
        better = row.steps
        share = _share(row.likely.obs_mse / row.copy_mse)
    verdict = "Even one step ahead, the dreamed frame is not closer to the real one than a copy of the last frame."
    if better:
        verdict = (
            f"Up to {_count(better, 'step')} ahead, dreamed frames are closer to the real ones than a copy of the last "
            f"frame; there, their error is {share} of the copy's."
        )
    return Section(
        "open_loop",
        "Frames by horizon",
        verdict,
        ["steps ahead", "windows", "most likely", "sampled", "copy last frame"],
        [
            [str(h.steps), f"{h.windows:,}", _num(h.likely.obs_mse), _num(h.sampled.obs_mse), _num(h.copy_mse)]
            for h in loop.horizons
        ],
        plot_errors(loop),
        "Mean squared error; pixels are in [0, 1], vectors in units of their standard deviation. Dreams start at real "
        "latents and take the real actions. If the future is random, a perfect sampled dream has twice the error of a "
        "perfect most likely one. "
        f"The error of encoded and decoded real frames is {_num(loop.rec_mse)}.",
    )


def _rewards(found: Fidelity) -> Section:
    rows = found.open_loop.horizons
    first, last = rows[0], rows[-1]
    if first.likely.rew_corr is None:
        verdict = f"The real or the dreamed reward is constant; the variance of the real one is {_num(first.rew_var)}."
    else:
        verdict = (
            f"{_ahead(first)}, the correlation of dreamed and real reward is {_num(first.likely.rew_corr)}; "
            f"summed over {_count(last.steps, 'step')} it is {_num(last.likely.sum_corr)}, "
            f"with a real mean of {_num(last.sum_mean)} and a dreamed mean of {_num(last.sampled.sum_mean)}."
        )
    return Section(
        "reward",
        "Rewards by horizon",
        verdict,
        [
            "steps ahead",
            "correlation",
            "squared error",
            "variance",
            "sum: correlation",
            "sum: real",
            "sum: most likely",
            "sum: sampled",
        ],
        [
            [
                str(h.steps),
                _num(h.likely.rew_corr),
                _num(h.likely.rew_mse),
                _num(h.rew_var),
                _num(h.likely.sum_corr),
                _num(h.sum_mean),
                _num(h.likely.sum_mean),
                _num(h.sampled.sum_mean),
            ]
            for h in rows
        ],
        plot_rewards(found.open_loop),
        "Rewards drop where the dream diverges from the recorded episode, because the recorded actions no longer fit. "
        "The variance is the squared error of a constant prediction.",
    )


def _ends(found: Fidelity) -> Section:
    loop, now, best = found.open_loop, found.reliability.now, found.reliability.best
    where = "sampled by the model"
    if not found.reliability.drawn:
        where = f"threshold {_num(now.cut_off)}"
    if not found.reliability.ends:
        verdict = "No real episode terminated, so the prediction of termination cannot be evaluated."
    elif now.precision is None:
        verdict = f"One step ahead, no termination is predicted; {now.ends} occurred ({where})."
    else:
        verdict = (
            f"One step ahead, {_share(now.recall)} of {_count(now.ends, 'real termination')} are predicted, and "
            f"{_share(now.precision)} of the predictions are correct ({where})."
        )
    if best is None:
        hint = (
            "The model samples termination with its predicted probability and uses no threshold. Even with perfect "
            "probabilities, some sampled terminations are at steps where none occurs."
        )
    elif best.f1:
        hint = f"The best threshold for these episodes is {_num(best.cut_off)}, with F1 {_num(best.f1)}."
    else:
        hint = best.note
    return Section(
        "termination",
        "Termination by horizon",
        verdict,
        ["steps ahead", "real", "recall", "dreamed", "precision", "most likely: recall", "most likely: precision"],
        [
            [
                f"{low + 1} to {h.steps}",
                str(h.num_ends),
                _share(h.sampled.end_recall),
                str(h.sampled.num_ends),
                _share(h.sampled.end_precision),
                _share(h.likely.end_recall),
                _share(h.likely.end_precision),
            ]
            for low, h in zip([0, *(h.steps for h in loop.horizons)], loop.horizons)
        ],
        plot_ends(loop) if any(h.num_ends or h.sampled.num_ends for h in loop.horizons) else None,
        f"The first termination of a dream counts, with a tolerance of {_count(loop.tolerance, 'step')}. {hint}",
    )


def _reliability(found: Fidelity) -> Section:
    r = found.reliability
    against = f"not better than that of the base rate ({_num(r.brier_base)})"
    if r.brier_base and r.brier <= r.brier_base:
        against = f"{_share(1 - r.brier / r.brier_base)} less than that of the base rate"
    source = (
        "Models that give rare terminations more weight in training predict too high probabilities on purpose; the "
        "calibrated threshold corrects for that."
    )
    if r.drawn:
        source = "Termination is sampled with these probabilities."
    return Section(
        "calibration",
        "Calibration of termination",
        f"The expected calibration error of the termination probability is {_num(r.ece)}; its squared error is "
        f"{_num(r.brier)}, {against}.",
        ["predicted", "steps", "mean predicted", "observed"],
        [[f"{b.low:g} to {b.high:g}", f"{b.steps:,}", _num(b.said), _num(b.came)] for b in r.bins],
        plot_reliability(r),
        f"All real steps, one step ahead. {source}",
    )


def _gap(found: Fidelity) -> Section:
    title, gap = "Return in dream and reality", found.gap
    if gap is None:
        return Section("gap", title, "The model has no policy, so there is no return to compare.")
    wide = math.hypot(gap.real_ci95 or 0.0, gap.dream_ci95 or 0.0)
    if gap.real_episodes < 3:
        weigh = f"only indicative with {_count(gap.real_episodes, 'real episode')}"
    elif abs(gap.gap) < 0.01 * abs(gap.real):
        weigh = "less than 1 %"
    else:
        weigh = "significant"
        if abs(gap.gap) <= wide:
            weigh = "not significant"
    return Section(
        "gap",
        title,
        f"Dream return {gap.dream:.1f} ± {_num(gap.dream_ci95)}, "
        f"real return {gap.real:.1f} ± {_num(gap.real_ci95)}: a gap of {gap.gap:+.1f}, {weigh}.",
        ["steps from a real latent", "windows", "real", "dream", "correlation"],
        [[str(c.steps), f"{c.windows:,}", _num(c.real), _num(c.dream), _num(c.corr)] for c in found.closed_loop],
        plot_closed_loop(found.closed_loop) if found.closed_loop else None,
        f"The saved policy over {_count(gap.real_episodes, 'real episode')}, dreams of {_count(gap.horizon, 'step')}; "
        "± is the 95 % CI of the mean. The table shows returns from within its own real episodes, continued in the "
        "dream and in reality; the horizon where they diverge is where the gap opens.",
    )


def _ranking(found: Fidelity) -> Section:
    r = found.ranking
    if r.spearman is None:
        verdict = "There are too few policies, or all have the same return, so there is no order to compare."
    else:
        word = next((word for least, word in ((0.8, "well"), (0.5, "roughly")) if r.spearman >= least), "badly")
        verdict = f"The dream orders {len(r.policies)} policies {word}: rank correlation {_num(r.spearman)}."
    return Section(
        "ranking",
        "Order of policies",
        verdict,
        ["policy", "real", "95 % CI", "dream", "95 % CI"],
        [
            [f"{i}. {p.name}", f"{p.real_mean:.1f}", _num(p.real_ci95), f"{p.dream_mean:.1f}", _num(p.dream_ci95)]
            for i, p in enumerate(r.by_real, 1)
        ],
        plot_ranking(r) if r.policies else None,
        f"Linear correlation: {_num(r.pearson)}.",
    )


def _temperatures(found: Fidelity) -> Section:
    title, rows = "Temperature", found.temperatures
    if not rows:
        return Section("temperature", title, "The model has no policy, so no temperature was measured.")
    high, low = max(rows, key=lambda r: r.dream), min(rows, key=lambda r: r.dream)
    verdict = (
        f"The dream return of the saved policy is {low.dream:.1f} (tau {low.tau}) to {high.dream:.1f} (tau {high.tau})."
    )
    trained = [r for r in rows if r.trained_real is not None]
    if trained:
        best = max(trained, key=lambda r: r.trained_real or 0.0)
        verdict += (
            f" Of the controllers trained at a fixed temperature, tau {best.tau} scores best in the real environment: "
            f"{best.trained_real:.1f}."
        )
    real = "–"
    if found.gap:
        real = f"{found.gap.real:.1f}"
    return Section(
        "temperature",
        title,
        verdict,
        [
            "tau",
            "saved policy: dream",
            "std",
            "saved policy: real",
            "trained at this tau: dream",
            "trained at this tau: real",
            "95 % CI",
        ],
        [
            [
                f"{r.tau:g}",
                f"{r.dream:.1f}",
                f"{r.dream_std:.1f}",
                real,
                _num(r.trained_dream),
                _num(r.trained_real),
                _num(r.trained_real_ci95),
            ]
            for r in rows
        ],
        plot_temperatures(rows, found.gap.real if found.gap else None),
        "The real return of the saved policy does not depend on the dream's temperature. The last columns are the "
        "table of Ha & Schmidhuber: a controller trained from scratch at that tau (`--train_temperatures`), in dreams "
        "of that tau and in the real environment.",
    )


def _history(found: Fidelity) -> Section:
    title, history = "Gap during training", found.history
    if history is None:
        return Section("training", title, "The run has no evaluated rounds (`--run DIR` names a run folder).")
    gaps = [r.dream - r.real for r in history.rounds]
    over = sum(gap > 0 for gap in gaps)
    verdict = (
        f"The dream return exceeded the real return in {over} of {_count(len(gaps), 'evaluation')}; "
        f"the last gap is {gaps[-1]:+.1f}."
    )
    ends = ""
    if history.final_dream is not None and history.final_real is not None:
        ends = (
            f" At the end of the run, the selected controller had a return of {history.final_dream:.1f} in dreams of "
            f"full length and {history.final_real:.1f} in the real environment."
        )
    span = ""
    if history.horizon is not None:
        span = f"of {_count(history.horizon, 'step')} (as last configured) "
    return Section(
        "training",
        title,
        verdict,
        ["round or generation", "real steps so far", "dream", "real", "std", "dream - real"],
        [
            [
                str(r.round),
                "–" if r.real_steps is None else f"{r.real_steps:,}",
                f"{r.dream:.1f}",
                f"{r.real:.1f}",
                _num(r.real_std),
                f"{gap:+.1f}",
            ]
            for r, gap in zip(history.rounds, gaps)
        ],
        plot_history(history),
        f"Dream: mean return of the population of CMA-ES, or of PPO with its noise, in training dreams {span}that "
        "start anywhere. Real: whole episodes of the mean of the population, or of PPO without noise. The two differ "
        f"for several reasons, so look at the trend, not the level.{ends}",
    )


def _doubt(found: Fidelity) -> Section:
    title, rows = "Disagreement", found.open_loop.horizons
    known = [h for h in rows if h.likely.doubt_corr is not None]
    if not known:
        return Section("disagreement", title, "The model is not an ensemble.")
    first = known[0]
    return Section(
        "disagreement",
        title,
        f"{_ahead(first)}, the rank correlation of disagreement and frame error is {_num(first.likely.doubt_corr)}.",
        ["steps ahead", "rank correlation, most likely", "rank correlation, sampled"],
        [[str(h.steps), _num(h.likely.doubt_corr), _num(h.sampled.doubt_corr)] for h in rows],
        plot_disagreement(found.open_loop),
    )


def _seeds(found: Fidelity) -> Section:
    d = found.determinism
    same = "does NOT repeat the same dream"
    if d.repeats:
        same = "repeats the same dream exactly"
    alone = "does NOT equal"
    if d.rows_alone:
        alone = "equals"
    return Section(
        "determinism",
        "Seeds",
        f"The same seed {same}; row i with seed s {alone} the single dream with seed s + i "
        f"(largest difference of a step in batches of 1 to {max(SIZES):,} rows: {d.worst:.1e}; rounding changed what "
        f"was drawn in {100 * d.parted:.2g} % of the steps).",
    )


def _ahead(row: Ahead) -> str:
    if row.steps == 1:
        return "One step ahead"
    return f"{row.steps} steps ahead"


def _count(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number:,} {what}s"


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %"


def _num(value: float | None) -> str:
    """Three significant digits, without an exponent for large numbers."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:.1f}"
    return f"{value:.3g}"
