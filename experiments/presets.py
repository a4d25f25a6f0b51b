"""What capture.py trains: presets, the optimizers that its options describe, and models of the presets' sizes."""

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from devinterp_func import models, optim, units
from devinterp_func.models import Config, Model
from devinterp_func.optim import Optimizer, Schedule
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

Kind = Literal["post", "gpt2", "neox", "llama"]
DEMO = {"d_model": 64, "n_heads": 4, "d_hidden": 64}
MINI = {"n_layers": 4, "d_model": 256, "n_heads": 4, "d_hidden": 1024, "dropout": 0.1}  # BERT-Mini's shape
TINY = {"n_layers": 2, "d_model": 128, "n_heads": 4, "d_hidden": 512, "dropout": 0.0}
MODERN = Recipe(  # as language models are trained today
    lr=3e-3,  # for the post's model and text the best of 3e-4, 1e-3 and 3e-3 by validation loss after 976 steps
    schedule=Schedule("cosine", warmup=500, end=0.1),
    optimizer=optim.adamw(betas=(0.9, 0.999), weight_decay=0.1, matrices_only=True),
    max_norm=1.0,
)
SHORT, LONGER = (Schedule("cosine", warmup=warmup, end=0.1) for warmup in (20, 100))
EVERY_20, EVERY_100 = Recording(k=100, snapshot_every=20), Recording(snapshot_every=100)
PRESETS: dict[str, tuple[dict[str, Any], Recipe, Recording]] = {
    "demo": (DEMO, replace(MODERN, schedule=SHORT), EVERY_20),
    "post": ({}, Recipe(), Recording()),
    "modern": ({}, MODERN, Recording(snapshot_every=976)),  # three an epoch: a snapshot is three times the weights
    "mini": (MINI, replace(MODERN, lr=1e-3, schedule=LONGER, context=128, batch_size=16, epochs=2), EVERY_100),
    "tiny": (TINY, replace(MODERN, lr=2e-3, schedule=LONGER, context=64, batch_size=16, epochs=1), EVERY_20),
}
PRE_NORM_LR = 1.0  # of models whose norms come first, as in Hugging Face's: at the presets' rates they learn badly
USUAL_LR = {"sgd": 5.0, "adam": 1e-3, "adamw": 1e-3, "muon": 1e-3}
USUAL_DECAY = {"sgd": 0.0, "adam": 0.0, "adamw": 0.1, "muon": 0.1}
TAKES = {  # what options mean something to which optimizer
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adam": ("betas", "eps", "weight_decay"),
    "adamw": ("betas", "eps", "weight_decay"),
    "muon": ("momentum", "nesterov", "weight_decay", "betas", "eps"),  # the last two are of its AdamW
}
AS_VECTORS = ("*embed*", "*wte*", "*wpe*", "decoder.weight", "lm_head*")  # matrices that Muon leaves to AdamW


def training_of(settings: Any, recipe: Recipe, model: Model, n_steps: int) -> Recipe:
    """The preset's recipe with the optimizer, the schedule and the learning rate of some settings.

    An optimizer of another kind than the preset's takes its own usual rate and, if it is not SGD and neither the preset
    nor the settings say how the rate goes on, a cosine down to a tenth after a warm-up of a twentieth of the steps, of
    500 at most. SGD with a momentum μ takes 1 − μ of the rate, by which a gradient moves the weights as far in all.

    Args:
        settings: of capture.py; what is None is the preset's.
        recipe: with all else that the settings say.
        model: which is trained.
        n_steps: of the training.

    Raises:
        ValueError: an option means nothing to the optimizer or the schedule, or a pattern matches no unit.
    """
    before = kind_of(recipe.optimizer)
    kind = settings.optimizer or before
    optimizer = optimizer_of(settings, recipe.optimizer, kind, model)
    schedule = schedule_of(settings, recipe.schedule, kind, n_steps)
    lr = recipe.lr if kind == before else USUAL_LR[kind]
    if kind == "sgd":
        lr = PRE_NORM_LR if settings.model != "post" else lr
        lr *= 1 - (settings.momentum or 0.0)
    return replace(recipe, optimizer=optimizer, schedule=schedule, lr=lr if settings.lr is None else settings.lr)


def kind_of(optimizer: Optimizer) -> str:
    """What the command line calls the optimizer of a preset."""
    rules = [group["rule"] for group in optim.to_dict(optimizer)]
    names = ["adamw" if rule.get("decoupled") else str(rule["name"]) for rule in rules]
    return "muon" if "muon" in names else names[0]


def optimizer_of(settings: Any, preset: Optimizer, kind: str, model: Model) -> Optimizer:
    """The preset's optimizer if nothing of it is changed; otherwise the one that the options describe."""
    given = {name: getattr(settings, name) for name in ("momentum", "nesterov", "betas", "eps", "weight_decay")}
    given = {name: value for name, value in given.items() if value is not None}
    if strange := sorted(given.keys() - set(TAKES[kind])):
        takers = [name for name, options in TAKES.items() if strange[0] in options]
        raise ValueError(f"--{_option(strange[0])} means nothing to {kind}, but to {', '.join(takers)}: leave it out")
    undecayed, same = tuple(settings.undecayed), kind == kind_of(preset)
    own = vars(preset.groups[0].rule) if same else {"weight_decay": USUAL_DECAY[kind]}
    decay = given.get("weight_decay", own["weight_decay"])
    if (undecayed or settings.decay_all) and not decay:
        option = "undecayed" if undecayed else "decay-all"
        raise ValueError(f"--{option} means nothing without weight decay: add --weight-decay, or leave it out")
    for pattern in undecayed:
        units.choose(model.shapes, (pattern,))
    if same and not (given or undecayed or settings.decay_all):
        return preset
    which: dict[str, Any] = {"undecayed": undecayed, "matrices_only": bool(decay) and not settings.decay_all}
    said: dict[str, Any] = {name: own[name] for name in TAKES[kind] if name in own} | given
    if kind != "muon":
        makers: dict[str, Callable[..., Optimizer]] = {"sgd": optim.sgd, "adam": optim.adam, "adamw": optim.adamw}
        return makers[kind](**said, **which)
    rest: dict[str, Any] = {name: said.pop(name) for name in ("betas", "eps") if name in said}
    but = tuple(pattern for pattern in AS_VECTORS if any(fnmatchcase(name, pattern) for name in model.shapes))
    made = optim.muon(**said, rest=optim.adamw(**rest, weight_decay=decay, **which), but=but)
    return Optimizer(tuple(replace(group, undecayed=undecayed) for group in made.groups))


def schedule_of(settings: Any, preset: Schedule, kind: str, n_steps: int) -> Schedule:
    """How the rate goes on: as the settings say, as the preset says, or as is usual for the optimizer."""
    given = {name: getattr(settings, name) for name in ("gamma", "warmup", "end")}
    given = {name: value for name, value in given.items() if value is not None}
    if settings.schedule is not None:
        return Schedule(settings.schedule, **given)
    if kind != "sgd" and preset.kind == "step" and "gamma" not in given:
        preset = Schedule("cosine", warmup=min(500, n_steps // 20), end=0.1)
    return replace(preset, **given)


def _option(name: str) -> str:
    return name.replace("_", "-")


def model_of(kind: Kind, config: Config, context: int) -> Model:
    """A model of the sizes of the post's, whose examples have ``context`` tokens.

    Raises:
        ImportError: it is one of Hugging Face's, and transformers is not installed.
    """
    if kind == "post":
        return models.transformer(config)
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f'--model {kind} needs transformers; pip install "devinterp_func[hf]"') from error
    shared: dict[str, Any] = {"vocab_size": config.vocab_size, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
        sizes = {"n_embd": config.d_model, "n_layer": config.n_layers, "n_head": config.n_heads}
        sizes |= {"n_inner": config.d_hidden, "n_positions": context}
        return models.causal_lm(transformers.GPT2Config(**shared, **sizes, **dropout))
    shared |= {"hidden_size": config.d_model, "intermediate_size": config.d_hidden, "max_position_embeddings": context}
    shared |= {"num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads}
    shared |= {"attention_dropout": config.dropout}
    if kind == "neox":
        return models.causal_lm(transformers.GPTNeoXConfig(**shared, hidden_dropout=config.dropout))
    return models.causal_lm(transformers.LlamaConfig(**shared))
