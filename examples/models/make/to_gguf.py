#!/usr/bin/env python3
"""HF directory (Llama or Qwen3, byte-level BPE tokenizer) -> GGUF, single file or sharded. No torch, no llama.cpp script.

    python to_gguf.py HF_DIR OUT.gguf [--type f32|f16|bf16|q8_0] [--shards N]
--shards N writes OUT-00001-of-0000N.gguf ...  Needs: numpy, safetensors, gguf (PyPI).
"""

import argparse, json, math, os, pathlib
import numpy as np, gguf
from gguf import GGMLQuantizationType as Q


def read_safetensors(d):
    """every tensor of the directory as float32; bf16 is read by hand, numpy has none"""
    out = {}
    for p in sorted(pathlib.Path(d).glob("*.safetensors")):
        b = p.read_bytes()
        n = int.from_bytes(b[:8], "little")
        head = json.loads(b[8 : 8 + n])
        for name, t in head.items():
            if name == "__metadata__":
                continue
            s, e = t["data_offsets"]
            raw = b[8 + n + s : 8 + n + e]
            if t["dtype"] == "BF16":
                a = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                a = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[t["dtype"]]).astype(np.float32)
            out[name] = a.reshape(t["shape"])
    return out


def permute(w, n_head):  # llama.cpp's "llama" graph rotates pairs (x0,x1); HF rotates halves
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("src")
    ap.add_argument("out")
    ap.add_argument("--type", default="f16")
    ap.add_argument("--shards", type=int, default=1)
    a = ap.parse_args()
    src = pathlib.Path(a.src)
    c = json.loads((src / "config.json").read_text())
    arch = {"llama": "llama", "qwen3": "qwen3"}[c["model_type"]]
    T = read_safetensors(src)
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    hd = c.get("head_dim") or c["hidden_size"] // heads
    n_tensors = len(T)
    kw = dict(split_max_tensors=math.ceil(n_tensors / a.shards)) if a.shards > 1 else {}
    w = gguf.GGUFWriter(a.out, arch, **kw)
    w.add_name(src.name)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_key_length(hd)
    w.add_value_length(hd)
    w.add_rope_freq_base((c.get("rope_parameters") or c).get("rope_theta", 10000.0))
    w.add_rope_dimension_count(hd)
    ftype = dict(f32=0, f16=1, bf16=32, q8_0=7)[a.type]
    w.add_file_type(ftype)
    w.add_quantization_version(2)
    # tokenizer
    t = json.loads((src / "tokenizer.json").read_text())
    vocab = t["model"]["vocab"]
    special = {x["id"]: x["content"] for x in t["added_tokens"]}
    toks = [f"[PAD{i}]" for i in range(c["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * c["vocab_size"]
    for s, i in vocab.items():
        toks[i], types[i] = s, gguf.TokenType.NORMAL
    for i, s in special.items():
        toks[i], types[i] = s, gguf.TokenType.CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(toks)
    w.add_token_types(types)
    w.add_token_merges(merges)
    eos = c["eos_token_id"] if isinstance(c["eos_token_id"], int) else c["eos_token_id"][0]
    w.add_eos_token_id(eos)
    w.add_bos_token_id(c.get("pad_token_id") or 0)
    w.add_pad_token_id(c.get("pad_token_id") or 0)
    w.add_add_bos_token(False)
    w.add_chat_template((src / "chat_template.jinja").read_text())
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    sub = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, x in T.items():
        if name in names:
            g = names[name]
        else:
            _, _, i, rest = name.split(".", 3)
            g = f"blk.{i}.{sub[rest.rsplit('.', 1)[0]]}.weight"
            if arch == "llama" and "q_proj" in rest:
                x = permute(x, heads)
            if arch == "llama" and "k_proj" in rest:
                x = permute(x, kv)
        x = np.ascontiguousarray(x)
        if x.ndim == 1 or a.type == "f32":
            w.add_tensor(g, x)
        else:
            q = {"f16": Q.F16, "bf16": Q.BF16, "q8_0": Q.Q8_0}[a.type]
            w.add_tensor(g, gguf.quants.quantize(x, q), raw_dtype=q)
    w.write_header_to_file(path=pathlib.Path(a.out))
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
