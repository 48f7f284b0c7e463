"""State dicts of models that act, and of networks over tables."""

from __future__ import annotations

from hivenode.models.identify.naming.state_dicts import Guess, Names, Rule
from hivenode.models.identify.report import FREE, Confidence, Port

AGENT = "reinforcement_learning"
QUALITY = ("q_net", "q_network", "qnet", "qnetwork", "q_net_target", "online_net", "dqn", "Q")
"""Roots of names."""
POLICY = ("policy_net", "policy")
TARGET = ("target_net", "target_network", "target", "target_q_net")


def _ends(names: Names) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Observation and action sizes by the first and last matrix, where both are plain."""
    plain = [shape for _, shape in names.matrices()]
    if plain and all(len(shape) == 2 for shape in plain):
        return (Port("observation", "float32", (FREE, plain[0][1])),), (
            Port("action_values", "float32", (FREE, plain[-1][0])),
        )
    return (), ()


def agent(names: Names) -> Guess | None:
    """Q-networks, actors and critics, by the names people give them."""
    roots = {name.split(".", 1)[0] for name in names.shapes}
    if any(root in roots for root in QUALITY) or (roots & set(TARGET) and roots & set(POLICY)):
        inward, outward = _ends(names)
        found = sorted(roots & (set(QUALITY) | set(TARGET)))[0]
        duelling = any(
            name.endswith("weight") and any(part in name[:-6] for part in ("advantage", "value_stream", "adv_"))
            for name in names.shapes
        )
        return Guess(
            f"{found} in its names", AGENT, "q_learning", "dqn", "DuelingDQN" if duelling else "DQN", inputs=inward,
            outputs=outward,
        )  # fmt: skip
    pair = any(root.startswith("actor") for root in roots) and any(
        root.startswith(("critic", "qf", "value")) for root in roots
    )
    if pair:
        twins = {"qf1", "qf2"} <= roots or {"critic1", "critic2"} <= roots or {"critic_1", "critic_2"} <= roots
        if twins:
            noise = names.find(r"(log_alpha|actor\.(log_std|fc_logstd|log_std_linear|log_std_layer).*)") is not None
            return Guess(
                "an actor and two critics", AGENT, "actor_critic", "sac" if noise else "td3",
                "SAC" if noise else "TD3", how=Confidence.guessed,
            )  # fmt: skip
        return Guess(
            "an actor and a critic", AGENT, "actor_critic", "actor_critic", "ActorCritic",
            task_how=Confidence.guessed,
        )  # fmt: skip
    if names.has("advantage.") and (names.has("value.") or names.has("value_stream.")):
        return Guess("streams for value and advantage", AGENT, "q_learning", "dqn", "DuelingDQN")
    return None


def tabnet(names: Names) -> Guess | None:
    if names.has("initial_splitter.") and names.has("feat_transformers.0."):
        return Guess("initial_splitter and feat_transformers", "tabular", None, "neural_network", "TabNet")
    return None


RULES: tuple[Rule, ...] = (agent, tabnet)
