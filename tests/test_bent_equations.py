"""The equation tests are sharp: each fails when the line that it checks is bent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import test_actor_critic
import test_dists
import test_dreamerv3
import test_laprop
import test_mppi
import test_returns
import test_tdmpc2

from policies.actor_critic import ActorCritic, _ReturnScale
from policies.dists import TwoHot, mixed, symexp
from policies.mppi import _smooth, _weigh, refit
from policies.returns import lambda_returns
from wm_agents.models import dreamerv3, tdmpc2, tdmpc2_policy
from wm_agents.models.dreamerv3 import RSSM, DreamerV3
from wm_agents.models.tdmpc2 import TDMPC2, TDMPC2Config
from wm_agents.models.tdmpc2_layers import _simnorm
from wm_agents.training.laprop import LaProp, _clip_by_agc


class Bend(NamedTuple):
    """One line of a function or property, what is to stand there instead, and the test that must notice."""

    function: Any
    line: str
    bent: str
    check: Callable[[], None]


def kl() -> None:
    with pytest.MonkeyPatch.context() as own:
        test_dreamerv3.test_kl_terms_have_free_nats_by_step_and_their_official_weights(own)


gru = test_dreamerv3.test_a_step_of_the_recurrent_model_is_the_equations
dream = test_actor_critic.test_a_dream_is_evaluated_by_the_equations
BENDS = {
    "two-hot: the neighbours swap their shares": Bend(
        TwoHot.shares,
        "(x - low) / (high - low)",
        "(high - x) / (high - low)",
        test_dists.test_the_loss_is_the_cross_entropy_of_the_shares,
    ),
    "two-hot in symlog: the mean stays there": Bend(
        TwoHot.mean,
        "return symexp(mean)",
        "return mean",
        test_tdmpc2.test_rewards_and_values_are_two_hots_in_symlog_as_in_numpy,
    ),
    "symexp bins: at sinh of the grid": Bend(
        TwoHot.bins, "symexp(grid)", "grid.sinh()", test_dists.test_bins_are_exponential_and_mirrored
    ),
    "symexp: without its minus 1": Bend(
        symexp, "expm1()", "exp()", test_dists.test_symlog_and_symexp_are_the_papers_and_undo_each_other
    ),
    "unimix: added to all of the chances": Bend(
        mixed, "(1 - unimix) * probs", "probs", test_dists.test_unimix_is_a_hundredth_of_even_chances
    ),
    "unimix: none in the recurrent model": Bend(RSSM._probs, "self.cfg.unimix", "0", gru),
    "KL: free nats of the mean, not of every step": Bend(
        DreamerV3.learn, "dyn.clamp(min=cfg.kl_free).mean()", "dyn.mean().clamp(min=cfg.kl_free)", kl
    ),
    "KL: both sides weigh alike": Bend(DreamerV3.learn, "(1 - cfg.kl_balance)", "cfg.kl_balance", kl),
    "KL: the prior pulls the posterior too": Bend(
        dreamerv3._kls, "post.detach() * (log_post.detach() - log_prior)", "post * (log_post - log_prior)", kl
    ),
    "continue: learned without the discount": Bend(
        DreamerV3.learn,
        "(1 - 1 / cfg.discount_horizon)",
        "1.0",
        test_dreamerv3.test_the_parts_of_a_loss_are_the_papers,
    ),
    "block GRU: no shift of the update gate": Bend(dreamerv3._update, "update - 1", "update", gru),
    "block GRU: a candidate without reset": Bend(dreamerv3._update, "torch.sigmoid(reset) * ", "", gru),
    "block GRU: actions beyond their bounds": Bend(RSSM.embed_act, " / act.abs().clamp(min=1).detach()", "", gru),
    "block GRU: forgets nothing at a first frame": Bend(
        RSSM.observe, "deter * keep[t]", "deter", test_dreamerv3.test_a_window_is_observed_by_the_equations
    ),
    "λ-returns: what follows is not discounted": Bend(
        lambda_returns, "cont * lam", "0 * cont + lam", test_returns.test_a_lambda_return_mixes_all_n_step_returns
    ),
    "λ-returns: nothing follows the last step": Bend(
        lambda_returns, "[], value[-1]", "[], 0 * value[-1]", test_returns.test_a_lambda_return_mixes_all_n_step_returns
    ),
    "actor: dreams weigh a step late": Bend(ActorCritic.judge, "cont.cumprod(0)[:-1]", "cont.cumprod(0)[1:]", dream),
    "actor: the root of the scale": Bend(ActorCritic.judge, "scale(returns)", "scale(returns).sqrt()", dream),
    "return scale: from the least to the most": Bend(
        _ReturnScale.forward,
        "[0.05, 0.95]",
        "[0.0, 1.0]",
        test_actor_critic.test_the_scale_of_returns_is_their_spread_averaged_and_never_below_1,
    ),
    "AGC: the smallest bound is pmin itself": Bend(
        _clip_by_agc,
        ".clamp(min=pmin) * agc",
        ".mul(agc).clamp(min=pmin)",
        test_laprop.test_clipping_goes_by_the_norm_of_each_tensor,
    ),
    "LaProp: squares begin at zero uncorrected": Bend(
        LaProp._move,
        '[1 - keep_square ** state["step"] for state in states]',
        "1.0",
        partial(test_laprop.test_five_steps_are_the_equations, 1.0),
    ),
    "SimNorm: as many groups as members": Bend(
        _simnorm, "(dim, -1)", "(-1, dim)", test_tdmpc2.test_simnorm_is_a_softmax_in_groups_as_in_numpy
    ),
    "discount heuristic: a fourth of an episode": Bend(
        TDMPC2Config.discount,
        "self.episode_length / 5",
        "self.episode_length / 4",
        partial(test_tdmpc2.test_the_discount_follows_from_the_length_of_episodes, 200, 0.975),
    ),
    "rho: the first loss is not whole": Bend(
        tdmpc2._over_time,
        "rho[: losses.shape[1]]",
        "rho[1 : losses.shape[1] + 1]",
        test_tdmpc2.test_losses_weigh_rho_to_the_t_as_in_numpy,
    ),
    "squashed normal: tanh's slope": Bend(
        tdmpc2_policy._squash_correction,
        "act.square()",
        "act.abs()",
        test_tdmpc2.test_log_probabilities_are_those_of_a_squashed_normal_as_in_numpy,
    ),
    "targets: the mean of two Qs": Bend(
        TDMPC2._td_target,
        ".amin(0)",
        ".mean(0)",
        partial(test_tdmpc2.test_targets_take_the_lesser_of_two_slow_qs, test_tdmpc2.BOX),
    ),
    "scale of values: from the least to the most": Bend(
        TDMPC2._follow_spread,
        "[0.05, 0.95]",
        "[0.0, 1.0]",
        test_tdmpc2.test_the_scale_of_values_follows_their_spread_in_train_mode_alone,
    ),
    "MPPI: the temperature divides": Bend(
        _weigh,
        "(temperature * (best - best[:, :1]))",
        "((best - best[:, :1]) / temperature)",
        test_mppi.test_elites_weigh_as_in_numpy,
    ),
    "MPPI: a variance for a deviation": Bend(
        refit, ".sqrt()", "", test_mppi.test_the_next_guess_is_the_weighted_mean_and_spread_as_in_numpy
    ),
    "MPPI: each choice gets the whole share": Bend(
        _smooth, " / elites.shape[-1]", "", test_mppi.test_choices_keep_a_chance_as_in_numpy
    ),
}


def bend(monkeypatch: pytest.MonkeyPatch, how: Bend) -> None:
    """Give the function other code, so that all who hold it meet the bent one."""
    function = inspect.unwrap(getattr(how.function, "fget", how.function))
    source = inspect.getsource(function)
    assert source.count(how.line) == 1, f"{how.line!r} must stand once in\n{source}"
    names: dict[str, Any] = {}
    code = source[source.index("def ") :].replace(how.line, how.bent)
    exec(compile(code, "bent", "exec"), function.__globals__, names)
    monkeypatch.setattr(function, "__code__", names[function.__name__].__code__)


@pytest.mark.parametrize("name", BENDS)
def test_a_bent_equation_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how = BENDS[name]
    how.check()
    bend(monkeypatch, how)
    with pytest.raises(AssertionError):
        how.check()
