"""What hubs list of repositories as people publish them."""

from collections.abc import Mapping
from typing import Final

from services.downloader.domain.listing import Listing, RemoteFile


def listing_of(*names: str) -> Listing:
    return Listing("c0ffee", tuple(RemoteFile(name, size) for size, name in enumerate(names)))


def shards(name: str, count: int) -> tuple[str, ...]:
    stem, _, ending = name.rpartition(".")
    return tuple(f"{stem}-{number:05}-of-{count:05}.{ending}" for number in range(1, count + 1))


_TOKENIZER: Final = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")

QWEN3: Final = (
    ".gitattributes", "LICENSE", "README.md", "config.json", "generation_config.json", "merges.txt",
    *shards("model.safetensors", 5), "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json",
)  # fmt: skip
QWEN_WITH_CODE: Final = (
    ".gitattributes", "LICENSE", "NOTICE", "README.md", "assets/logo.jpg", "assets/qwen_tokenizer.png",
    "assets/wanx_colorful_black.pdf", "examples/demo.mp4", "examples/hello.wav", "cache_autogptq_cuda_256.cpp",
    "chat_template.jinja", "config.json", "configuration_qwen.py", "generation_config.json",
    *shards("model.safetensors", 2), "model.safetensors.index.json", "modeling_qwen.py", "qwen.tiktoken",
    "tokenization_qwen.py", "tokenizer_config.json",
)  # fmt: skip
LLAMA: Final = (
    ".gitattributes", "LICENSE", "README.md", "USE_POLICY.md", "config.json", "generation_config.json",
    *shards("model.safetensors", 4), "model.safetensors.index.json", "original/consolidated.00.pth",
    "original/params.json", "original/tokenizer.model", *_TOKENIZER,
)  # fmt: skip
GPT_OSS: Final = (
    ".gitattributes", "LICENSE", "README.md", "USAGE_POLICY", "chat_template.jinja", "config.json",
    "generation_config.json", "metal/model.bin", *shards("model.safetensors", 3),
    "model.safetensors.index.json", "original/config.json", "original/dtypes.json", "original/model.safetensors",
    *_TOKENIZER,
)  # fmt: skip
MISTRAL: Final = (
    ".gitattributes", "README.md", "config.json", "consolidated.safetensors", "consolidated.safetensors.index.json",
    "generation_config.json", *shards("model.safetensors", 3), "model.safetensors.index.json", "params.json",
    *_TOKENIZER, "tokenizer.model", "tokenizer.model.v3",
)  # fmt: skip
PIXTRAL: Final = (".gitattributes", "README.md", "consolidated.safetensors", "params.json", "tekken.json")
SDXL: Final = (
    ".gitattributes", "01.png", "LICENSE.md", "README.md", "comparison.png", "model_index.json", "pipeline.png",
    "scheduler/scheduler_config.json", "sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors",
    "text_encoder/config.json", "text_encoder/flax_model.msgpack", "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx", "text_encoder/model.safetensors", "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
    "unet/diffusion_flax_model.msgpack", *shards("unet/diffusion_pytorch_model.fp16.safetensors", 2),
    *shards("unet/diffusion_pytorch_model.safetensors", 3), "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/model.onnx", "unet/model.onnx_data", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "vae_decoder/config.json", "vae_decoder/model.onnx",
)  # fmt: skip
LORA: Final = (
    ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors",
    "checkpoint-500/adapter_config.json", "checkpoint-500/adapter_model.safetensors", "checkpoint-500/optimizer.pt",
    "checkpoint-500/rng_state.pth", "checkpoint-500/scheduler.pt", "checkpoint-500/trainer_state.json",
    "checkpoint-500/training_args.bin", "optimizer.safetensors", "rng_state_0",
    "runs/May05_10-33-22_host/events.out.tfevents.1714905203.host.1.0", *_TOKENIZER, "training_args.bin",
)  # fmt: skip
MINILM: Final = (
    ".gitattributes", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    "2_Dense/pytorch_model.bin", "README.md", "config.json", "config_sentence_transformers.json",
    "coreml/model.mlmodel", "flax_model.msgpack", "model.safetensors", "modules.json", "onnx/config.json",
    "onnx/model.onnx", "openvino/openvino_model.bin", "openvino/openvino_model.xml", "pytorch_model.bin",
    "rust_model.ot", "sentence_bert_config.json", *_TOKENIZER, "tf_model.h5", "vocab.txt",
)  # fmt: skip
OPT: Final = (
    ".gitattributes", "LICENSE.md", "README.md", "config.json", "flax_model.msgpack", "generation_config.json",
    "merges.txt", "pytorch_model.bin", "special_tokens_map.json", "tf_model.h5", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
BARTOWSKI: Final = (
    ".gitattributes", "Llama-3.3-70B-Instruct-IQ2_XXS.gguf", "Llama-3.3-70B-Instruct-Q4_K_L.gguf",
    "Llama-3.3-70B-Instruct-Q4_K_M.gguf", *shards("Llama-3.3-70B-Instruct-Q6_K/Llama-3.3-70B-Instruct-Q6_K.gguf", 2),
    *shards("Llama-3.3-70B-Instruct-Q8_0/Llama-3.3-70B-Instruct-Q8_0.gguf", 2), "Llama-3.3-70B-Instruct.imatrix",
    "Llama-3.3-70B-Instruct-imatrix.gguf", "README.md",
)  # fmt: skip
UNSLOTH: Final = (
    ".gitattributes", *shards("BF16/Qwen3-235B-A22B-BF16.gguf", 10), *shards("Q4_K_M/Qwen3-235B-A22B-Q4_K_M.gguf", 3),
    *shards("UD-Q4_K_XL/Qwen3-235B-A22B-UD-Q4_K_XL.gguf", 3), "Qwen3-235B-A22B-UD-IQ1_S.gguf", "README.md",
    "config.json", "imatrix_unsloth.dat", "imatrix_unsloth.gguf",
)  # fmt: skip
GEMMA: Final = (
    ".gitattributes", "README.md", "config.json", "gemma-3-4b-it-BF16.gguf", "gemma-3-4b-it-Q4_K_M.gguf",
    "gemma-3-4b-it-Q8_0.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf", "mmproj-Q8_0.gguf",
)  # fmt: skip
QWEN_VL: Final = (
    ".gitattributes", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "README.md",
    "Qwen2.5-VL-7B-Instruct.mmproj-fp16.gguf", "mtp-Qwen2.5-VL-7B-Instruct.gguf",
)  # fmt: skip
TWO_PRECISIONS: Final = (
    ".gitattributes", "README.md", "config.json", *shards("model.safetensors", 2), "model.safetensors.index.json",
    "fp8/config.json", *shards("fp8/model.safetensors", 2), "fp8/model.safetensors.index.json",
    "fp8/chat/template.jinja", "int4/config.json", "int4/model.safetensors", *_TOKENIZER,
)  # fmt: skip

REPOSITORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "qwen3": QWEN3, "qwen with code": QWEN_WITH_CODE, "llama": LLAMA, "gpt-oss": GPT_OSS, "mistral": MISTRAL,
    "pixtral": PIXTRAL, "sdxl": SDXL, "lora": LORA, "minilm": MINILM, "opt": OPT, "bartowski": BARTOWSKI,
    "unsloth": UNSLOTH, "gemma": GEMMA, "qwen vl": QWEN_VL, "two precisions": TWO_PRECISIONS,
}  # fmt: skip
