"""What the pickles inside stable-baselines3's archives may mention."""

from __future__ import annotations

from hivenode.models.identify.naming.estimator_pickles import ALLOWED as ESTIMATOR_PICKLES

_POLICIES = (
    ("common.policies", "ActorCriticPolicy ActorCriticCnnPolicy MultiInputActorCriticPolicy"),
    ("dqn.policies", "DQNPolicy CnnPolicy MultiInputPolicy"),
    ("sac.policies", "SACPolicy CnnPolicy MultiInputPolicy"),
    ("td3.policies", "TD3Policy CnnPolicy MultiInputPolicy"),
    ("common.buffers", "ReplayBuffer RolloutBuffer DictReplayBuffer DictRolloutBuffer NStepReplayBuffer"),
    ("common.utils", "FloatSchedule LinearSchedule ConstantSchedule"),
    ("common.noise", "NormalActionNoise OrnsteinUhlenbeckActionNoise VectorizedActionNoise"),
    ("common.torch_layers", "FlattenExtractor NatureCNN MlpExtractor CombinedExtractor"),
    ("her.her_replay_buffer", "HerReplayBuffer"),
    ("her.goal_selection_strategy", "GoalSelectionStrategy"),
)
_SPACES = (
    ("box", "Box"), ("discrete", "Discrete"), ("multi_discrete", "MultiDiscrete"), ("multi_binary", "MultiBinary"),
    ("dict", "Dict"), ("tuple", "Tuple"),
)  # fmt: skip
_TORCH = (
    "torch.nn.modules.activation.ReLU", "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.LeakyReLU",
    "torch.nn.modules.activation.ELU", "torch.nn.modules.activation.GELU", "torch.nn.modules.activation.SiLU",
    "torch.optim.adam.Adam", "torch.optim.adamw.AdamW", "torch.optim.rmsprop.RMSprop", "torch.optim.sgd.SGD",
)  # fmt: skip
_CALLED = (
    "stable_baselines3.common.type_aliases.TrainFreq", "stable_baselines3.common.type_aliases.TrainFrequencyUnit",
    "stable_baselines3.her.goal_selection_strategy.GoalSelectionStrategy",
)  # fmt: skip
BARE: frozenset[str] = frozenset(
    {f"stable_baselines3.{module}.{name}" for module, names in _POLICIES for name in names.split()}
    | {f"{package}.spaces.{module}.{name}" for package in ("gymnasium", "gym") for module, name in _SPACES}
    | set(_TORCH)
) - frozenset(_CALLED)
"""Classes that stand as values, or whose instances are made bare."""
ALLOWED: frozenset[str] = ESTIMATOR_PICKLES | BARE | frozenset(_CALLED)
