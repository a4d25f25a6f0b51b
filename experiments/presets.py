"""What capture.py trains: two presets of sizes, and models of these sizes, the post's own or Hugging Face's."""

from typing import Any, Literal

from devinterp_func import models
from devinterp_func.models import Config, Model
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

Kind = Literal["post", "gpt2", "neox", "llama"]
DEMO = {"d_model": 64, "n_heads": 4, "d_hidden": 64}
PRESETS: dict[str, tuple[dict[str, Any], Recipe, Recording]] = {
    "demo": (DEMO, Recipe(epochs=1, n_steps=400, lr=4.0), Recording(k=100, snapshot_every=100)),
    "post": ({}, Recipe(), Recording()),
}
PRE_NORM_LR = 1.0  # of models whose norms come first, as in Hugging Face's: at the presets' rates they learn badly


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
