"""Models that tests make: small ones in GGUF files, weights by lot; one with another template.

`tiny_model(path)` writes a language model in a fraction of a second; a system runs on it with

    boot(model=str(tiny_model(tmp_path / "tiny.gguf")))

or, as a setting for whatever takes those of config.toml, `{"model": str(path)}`. It has the chat
template, the control tokens and the first merges of the embedded model, computes a token in a
fraction of a millisecond, is exact on all slots, and can be held to schemas and grammars. Its text
is words without sense; each depends on all that was before. Greedy answers end by themselves after
some tens of tokens, or go round in circles until `max_tokens`: pass that, and `ignore_eos=True`
where the number of tokens matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
from numpy.typing import NDArray

WIDTH, WINDOW, HEADS = 32, 64, 4
CONTROL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_bert(
    path: Path, texts: list[str], pooling: PoolingType | None = PoolingType.MEAN, *, seed: int = 1
) -> dict[str, NDArray[np.float32]]:
    """A model of one layer that knows the words of `texts`; its weights by llama.cpp's names."""
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    out = GGUFWriter(path, "bert")
    out.add_context_length(WINDOW)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(WIDTH)
    out.add_block_count(1)
    out.add_head_count(HEADS)
    out.add_layer_norm_eps(1e-12)
    out.add_causal_attention(False)
    if pooling is not None:
        out.add_pooling_type(pooling)
    out.add_tokenizer_model("bert")
    out.add_token_type_count(2)
    out.add_token_list([*CONTROL, *("\u2581" + word for word in words)])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    out.add_token_types([control] * len(CONTROL) + [normal] * len(words))
    out.add_pad_token_id(0)
    out.add_unk_token_id(1)
    out.add_bos_token_id(2)
    out.add_sep_token_id(3)
    weights = drawn(len(CONTROL) + len(words), np.random.default_rng(seed))
    for name, weight in weights.items():
        out.add_tensor(name, weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return weights


def drawn(tokens: int, dice: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Draw weights of a layer that does little: a vector is mostly the words of its text."""
    weights = {
        "token_embd.weight": dice.standard_normal((tokens, WIDTH), np.float32),
        "position_embd.weight": 0.1 * dice.standard_normal((WINDOW, WIDTH), np.float32),
        "token_types.weight": np.zeros((2, WIDTH), np.float32),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        weights[f"blk.0.{name}.weight"] = 0.1 * dice.standard_normal((WIDTH, WIDTH), np.float32)
        weights[f"blk.0.{name}.bias"] = np.zeros(WIDTH, np.float32)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        weights[f"{name}.weight"] = np.ones(WIDTH, np.float32)
        weights[f"{name}.bias"] = np.zeros(WIDTH, np.float32)
    return weights


def with_template(model: Path, path: Path, template: str | None) -> None:
    """A copy of a model that carries another chat template, or none."""
    reader = gguf.GGUFReader(model)
    writer = GGUFWriter(path, "llama", endianess=reader.endianess)
    key = gguf.Keys.Tokenizer.CHAT_TEMPLATE
    if template is None:
        copy_with_new_metadata(reader, writer, {}, [key])
    else:
        new = MetadataDetails(gguf.GGUFValueType.STRING, template)
        copy_with_new_metadata(reader, writer, {key: new}, [])


def with_tokenizer(model: Path, path: Path, kind: str) -> None:
    """A copy of a model that carries another tokenizer: "none", or "rwkv", which is words without
    one that ends an answer."""
    reader = gguf.GGUFReader(model)
    old = [name for name in reader.fields if name.startswith("tokenizer.")]
    count = int(reader.tensors[0].shape[-1])
    text, number = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
    words = [f"word{at}" for at in range(count)]
    new = {
        gguf.Keys.Tokenizer.MODEL: MetadataDetails(text, kind),
        gguf.Keys.Tokenizer.LIST: MetadataDetails(gguf.GGUFValueType.ARRAY, words, sub_type=text),
        "llama.vocab_size": MetadataDetails(number, count),
    }
    if kind == "none":
        del new[gguf.Keys.Tokenizer.LIST]
    writer = GGUFWriter(path, "llama", endianess=reader.endianess)
    copy_with_new_metadata(reader, writer, new, [name for name in old if name not in new])


# --- a vocabulary -------------------------------------------------------------------------------


def write_sentences(path: Path, words: list[str]) -> list[str]:
    """A vocabulary as SentencePiece's, of `words` and single bytes, without a model; its tokens."""
    control, normal, byte = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.BYTE
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), *words]
    out = GGUFWriter(path, "llama")
    out.add_context_length(WINDOW)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(WIDTH)
    out.add_block_count(1)
    out.add_head_count(1)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([-float(number) for number in range(len(tokens))])
    out.add_token_types(
        [gguf.TokenType.UNKNOWN, control, control, *[byte] * 256, *[normal] * len(words)]
    )
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(True)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return tokens


# --- language models -----------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMBD, FF, HEAD, QUERIES = 64, 96, 32, 2  # sizes of a layer; a head; how many of these ask
STATE, CONV, RANK = 16, 4, 32  # of a recurrent layer

Shapes = dict[str, tuple[int, ...]]


def tiny_model(
    path: Path, arch: str = "llama", *, layers: int = 0, trained: int = 8192, window: int = 0,
    head: int = HEAD, vocabulary: int = 0, seed: int = 1, matrices: str = "Q8_0", split: int = 0,
) -> Path:  # fmt: skip
    """Write a language model of `arch` to `path`, and return the path; with a `split`, write
    several files of so many tensors each, and return the path of the first.

    The model says it was `trained` for so many tokens. `window` is that of sliding attention, for
    the archs that have it. `vocabulary` adds tokens that no text has, up to so many in all.
    """
    layers = layers or {"gemma3": 6, "jamba": 4}.get(arch, 2)
    out = GGUFWriter(path, arch, split_max_tensors=split)
    heads = [0 if arch == "jamba" and layer % 2 == 0 else 1 for layer in range(layers)]
    out.add_file_type(gguf.LlamaFileType[f"MOSTLY_{matrices}"])
    _add_shape(out, arch, layers, trained, window, head, heads)
    tokens = _add_vocabulary(out, vocabulary)
    dice = np.random.default_rng(seed)
    shapes: Shapes = {"token_embd.weight": (len(tokens), EMBD), "output_norm.weight": (EMBD,)}
    if arch == "gpt2":
        shapes |= {"position_embd.weight": (trained, EMBD), "output_norm.bias": (EMBD,)}
    for layer in range(layers):
        names = _layer(arch, head, recurrent=arch.startswith("mamba") or not heads[layer])
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in names.items()}
    if arch == "t5":
        shapes = {"token_embd.weight": (len(tokens), EMBD)} | _encoder_and_decoder(layers)
    weights = {name: _weights(name, shape, dice) for name, shape in shapes.items()}
    if arch not in {"gemma2", "gemma-embedding", "t5"}:  # which have the embeddings there, or none
        line_end = weights["token_embd.weight"][tokens.index("Ċ")] * weights["output_norm.weight"]
        weights["output.weight"] = _output(tokens, line_end, dice)
    for name, weight in weights.items():
        _add_tensor(out, name, weight, GGMLQuantizationType[matrices])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*")) if split else path


def _add_shape(
    out: GGUFWriter, arch: str, layers: int, trained: int, window: int, head: int, heads: list[int]
) -> None:
    out.add_context_length(trained)
    out.add_embedding_length(EMBD)
    out.add_feed_forward_length(FF)
    out.add_block_count(layers)
    out.add_layer_norm_rms_eps(1e-5)
    if arch in {"mamba", "mamba2", "jamba"}:
        out.add_ssm_conv_kernel(CONV)
        out.add_ssm_inner_size(2 * EMBD)
        out.add_ssm_state_size(STATE)
        out.add_ssm_time_step_rank(RANK if arch != "mamba2" else 4)
        out.add_ssm_group_count(1)
    if arch == "gpt2":
        out.add_layer_norm_eps(1e-5)
    if not arch.startswith("mamba"):
        out.add_head_count(QUERIES)
        alone = arch in {"gpt2", "t5"}
        out.add_head_count_kv(heads if arch == "jamba" else QUERIES if alone else 1)
        out.add_key_length(head)
        out.add_value_length(head)
    if window:
        out.add_sliding_window(window)
    if arch == "qwen2vl":
        out.add_rope_dimension_sections([8, 4, 4, 0])
    if arch == "t5":
        out.add_relative_attn_buckets_count(32)


def merges() -> list[str]:
    """The first merges of the embedded model's vocabulary."""
    return (Path(__file__).parent / "merges.txt").read_text().splitlines()


def _bytes_as_text() -> Iterator[str]:
    """How GPT-2 writes each byte: those that cannot be printed as characters from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from map(chr, printed)
    yield from (chr(0x100 + at) for at in range(256 - len(printed)))


def _add_vocabulary(out: GGUFWriter, size: int) -> list[str]:
    joined = merges()
    tokens = [*SPECIAL, *_bytes_as_text(), *(pair.replace(" ", "") for pair in joined)]
    filling = [f"<filling {number}>" for number in range(size - len(tokens))]
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    types = [control] * len(SPECIAL) + [normal] * (len(tokens) - len(SPECIAL))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list([*tokens, *filling])
    out.add_token_types([*types, *[unused] * len(filling)])
    out.add_token_merges(joined)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(False)
    out.add_add_space_prefix(False)
    out.add_chat_template(CHATML)
    return [*tokens, *filling]


def _layer(arch: str, head: int, *, recurrent: bool) -> Shapes:
    """The shapes of a layer's tensors, by llama.cpp's names."""
    dense: Shapes = {
        "ffn_norm.weight": (EMBD,), "ffn_up.weight": (FF, EMBD), "ffn_down.weight": (EMBD, FF),
    }  # fmt: skip
    if arch == "gpt2":
        wide = EMBD + 2 * QUERIES * head
        dense |= {"attn_qkv.weight": (wide, EMBD), "attn_output.weight": (EMBD, EMBD)}
        dense |= {"attn_norm.weight": (EMBD,), "attn_qkv.bias": (wide,), "attn_norm.bias": (EMBD,)}
        dense |= {"ffn_norm.bias": (EMBD,), "ffn_up.bias": (FF,), "ffn_down.bias": (EMBD,)}
        return dense | {"attn_output.bias": (EMBD,)}
    dense |= {"ffn_gate.weight": (FF, EMBD)}
    if recurrent:
        return _recurrent(arch) | (dense if arch == "jamba" else {})
    dense |= {
        "attn_norm.weight": (EMBD,),
        "attn_q.weight": (QUERIES * head, EMBD),
        "attn_k.weight": (head, EMBD),
        "attn_v.weight": (head, EMBD),
        "attn_output.weight": (EMBD, QUERIES * head),
    }
    if arch in {"gemma2", "gemma3", "gemma-embedding"}:
        dense |= {"post_attention_norm.weight": (EMBD,), "post_ffw_norm.weight": (EMBD,)}
    if arch in {"gemma3", "gemma-embedding", "qwen3"}:
        dense |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    return dense


def _encoder_and_decoder(layers: int) -> Shapes:
    shapes: Shapes = {"enc.output_norm.weight": (EMBD,), "dec.output_norm.weight": (EMBD,)}
    for side, attentions in (("enc", ["attn"]), ("dec", ["attn", "cross_attn"])):
        for layer in range(layers):
            at = f"{side}.blk.{layer}"
            for attention in attentions:
                shapes[f"{at}.{attention}_norm.weight"] = (EMBD,)
                shapes |= {f"{at}.{attention}_{each}.weight": (EMBD, EMBD) for each in "qkvo"}
            shapes |= {f"{at}.ffn_norm.weight": (EMBD,), f"{at}.attn_rel_b.weight": (32, QUERIES)}
            shapes |= {f"{at}.ffn_up.weight": (FF, EMBD), f"{at}.ffn_down.weight": (EMBD, FF)}
    return shapes


def _recurrent(arch: str) -> Shapes:
    inner = 2 * EMBD
    shapes: Shapes = {"attn_norm.weight": (EMBD,), "ssm_out.weight": (EMBD, inner)}
    if arch == "mamba2":
        wide = inner + 2 * STATE
        return shapes | {
            "ssm_in.weight": (inner + wide + 4, EMBD), "ssm_conv1d.weight": (wide, CONV),
            "ssm_conv1d.bias": (wide,), "ssm_dt.bias": (4,), "ssm_a": (4, 1), "ssm_d": (4, 1),
            "ssm_norm.weight": (1, inner),
        }  # fmt: skip
    if arch == "jamba":
        shapes |= {"ssm_dt_norm.weight": (RANK,)}
        shapes |= {"ssm_b_norm.weight": (STATE,), "ssm_c_norm.weight": (STATE,)}
    return shapes | {
        "ssm_in.weight": (2 * inner, EMBD), "ssm_conv1d.weight": (inner, CONV),
        "ssm_conv1d.bias": (inner,), "ssm_x.weight": (RANK + 2 * STATE, inner),
        "ssm_dt.weight": (inner, RANK), "ssm_dt.bias": (inner,), "ssm_a": (inner, STATE),
        "ssm_d": (inner,),
    }  # fmt: skip


def _weights(name: str, shape: tuple[int, ...], dice: np.random.Generator) -> NDArray[np.float32]:
    """Draw weights at random, scaled so that activations keep their size."""
    if name == "token_embd.weight":
        rows = dice.standard_normal(shape, np.float32)
        rows[:, 0] = 2.0  # the same in each: with it the output prefers some tokens to others
        return rows
    if name == "output_norm.weight":  # some turned round, or a token would be followed by itself
        return np.where(np.arange(EMBD) % 2, -1, 1).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.exp(dice.standard_normal(shape, np.float32))
    if name.endswith(("norm.weight", "ssm_d")):
        return np.ones(shape, np.float32)
    if len(shape) == 1:
        return 0.1 * dice.standard_normal(shape, np.float32)
    scale = 2.0 if re.search(r"attn_(q|k|qkv)\.", name) else 1.0  # so that some are looked at more
    matrix: NDArray[np.float32] = (
        scale * dice.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[1]))
    )
    if name.endswith(("attn_output.weight", "ffn_down.weight", "ssm_out.weight")):
        matrix[0] = 0  # what is the same in each embedding stays so
    return matrix


def _output(
    tokens: list[str], line_end: NDArray[np.float32], dice: np.random.Generator
) -> NDArray[np.float32]:
    """Make the output matrix: text is likely, a byte that is no character is not. An end comes at
    times, but hardly as an answer's first token, which follows the end of a line."""
    weights = 0.3 * dice.standard_normal((len(tokens), EMBD), np.float32)
    plain = np.array([re.fullmatch("[ -~ĠĊ]+", token) is not None for token in tokens])
    weights[~plain] = 0
    weights[:, 0] = np.where(plain, 0.0, -20.0)
    weights[:2] = -20.0 * (np.arange(EMBD) == 0)
    weights[2] = 1.7 * weights[2] - 1.5 * line_end / np.linalg.norm(line_end)
    weights[2, 0] = 0
    return weights


def _add_tensor(
    out: GGUFWriter, name: str, weights: NDArray[np.float32], kind: GGMLQuantizationType
) -> None:
    """Add a tensor: a matrix as `kind`, any other as it is."""
    if (
        weights.ndim == 2
        and weights.shape[1] % 32 == 0
        and re.search("position|norm", name) is None
    ):
        out.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    else:
        out.add_tensor(name, weights)
