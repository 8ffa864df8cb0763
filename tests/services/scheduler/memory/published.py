"""What published config.json files say about memory, and what their models are. Fields that say nothing of it are left out.

The comment behind `token_bytes` is the sum by hand: layers with a cache × numbers a token keeps there × bytes of a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from services.scheduler.domain.memory.architecture import Architecture


@dataclass(frozen=True)
class Published:
    config: Mapping[str, Any]
    is_: Architecture
    token_bytes: int
    """Of the KV cache, in the model's own type, on one GPU."""


def a_llama(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": 8,
        "num_hidden_layers": layers, "max_position_embeddings": 131072, "vocab_size": 128256, "torch_dtype": "bfloat16",
        "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    }  # fmt: skip


def is_a_llama(layers: int, hidden: int, heads: int, intermediate: int) -> Architecture:
    return Architecture(
        name="LlamaForCausalLM", category="llm", layers=layers, attention_layers=layers, hidden_size=hidden,
        intermediate_size=intermediate, attention_heads=heads, kv_heads=8, head_size=128, vocabulary_size=128256,
        context_length=131072,
    )  # fmt: skip


def a_qwen2(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers, "max_position_embeddings": 32768, "max_window_layers": layers,
        "sliding_window": 131072, "use_sliding_window": False, "vocab_size": 152064, "torch_dtype": "bfloat16", **more,
    }  # fmt: skip


def is_a_qwen2(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, **more: Any) -> Architecture:
    architecture = Architecture(
        name="Qwen2ForCausalLM", category="llm", layers=layers, attention_layers=layers, hidden_size=hidden,
        intermediate_size=intermediate, attention_heads=heads, kv_heads=kv_heads, head_size=128,
        vocabulary_size=152064, context_length=32768,
    )  # fmt: skip
    return replace(architecture, **more)


def a_qwen3(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, name: str = "Qwen3ForCausalLM", **more: Any
) -> dict[str, Any]:
    return {
        "architectures": [name], "model_type": "qwen3", "head_dim": 128, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers, "max_position_embeddings": 40960, "max_window_layers": layers, "rope_scaling": None,
        "sliding_window": None, "use_sliding_window": False, "vocab_size": 151936, "torch_dtype": "bfloat16", **more,
    }  # fmt: skip


def is_a_qwen3(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, **more: Any) -> Architecture:
    architecture = Architecture(
        name="Qwen3ForCausalLM", category="llm", layers=layers, attention_layers=layers, hidden_size=hidden,
        intermediate_size=intermediate, attention_heads=heads, kv_heads=kv_heads, head_size=128,
        vocabulary_size=151936, context_length=40960,
    )  # fmt: skip
    return replace(architecture, **more)


def a_mixtral(layers: int, hidden: int, heads: int, intermediate: int, context: int) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": 8,
        "num_hidden_layers": layers, "max_position_embeddings": context, "num_local_experts": 8, "sliding_window": None,
        "vocab_size": 32000, "torch_dtype": "bfloat16",
    }  # fmt: skip


DEEPSEEK_V3: Final = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "n_routed_experts": 256,
    "num_attention_heads": 128, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rope_scaling": {"factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}, "torch_dtype": "bfloat16",
}  # fmt: skip
IS_DEEPSEEK_V3: Final = Architecture(
    name="DeepseekV3ForCausalLM", category="llm", layers=61, attention_layers=61, hidden_size=7168,
    intermediate_size=18432, attention_heads=128, kv_heads=128, head_size=192, value_size=128, latent_size=576,
    vocabulary_size=129280, context_length=163840, quantization="fp8",
)  # fmt: skip

XLM_ROBERTA: Final = {
    "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_size": 1024, "intermediate_size": 4096,
    "max_position_embeddings": 8194, "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1,
    "position_embedding_type": "absolute", "torch_dtype": "float32", "vocab_size": 250002,
}  # fmt: skip
IS_XLM_ROBERTA: Final = Architecture(
    name="XLMRobertaModel", category="embedding", layers=24, attention_layers=0, hidden_size=1024,
    intermediate_size=4096, attention_heads=16, kv_heads=16, head_size=64, vocabulary_size=250002, context_length=8192,
    element_bytes=4,
)  # fmt: skip

PUBLISHED: Final[Mapping[str, Published]] = {
    "Llama-3.1-8B": Published(
        a_llama(32, 4096, 32, 14336), is_a_llama(32, 4096, 32, 14336),
        token_bytes=131072,  # 32 × 2 × 8 × 128 × 2
    ),
    "Llama-3.1-70B": Published(
        a_llama(80, 8192, 64, 28672), is_a_llama(80, 8192, 64, 28672),
        token_bytes=327680,  # 80 × 2 × 8 × 128 × 2
    ),
    "Llama-3.1-405B": Published(
        a_llama(126, 16384, 128, 53248), is_a_llama(126, 16384, 128, 53248),
        token_bytes=516096,  # 126 × 2 × 8 × 128 × 2
    ),
    "Llama-4-Scout-17B-16E": Published(
        {
            "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "llama4_text", "attention_chunk_size": 8192, "head_dim": 128, "hidden_size": 5120,
                "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760,
                "no_rope_layers": [], "num_attention_heads": 40, "num_hidden_layers": 48, "num_key_value_heads": 8,
                "num_local_experts": 16, "vocab_size": 202048,
                "rope_scaling": {"factor": 16.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            },
            "vision_config": {
                "model_type": "llama4_vision_model", "hidden_size": 1408, "image_size": 336, "intermediate_size": 5632,
                "num_attention_heads": 16, "num_hidden_layers": 34, "patch_size": 14,
            },
        },
        Architecture(
            name="Llama4ForConditionalGeneration", category="llm", layers=48, attention_layers=48, windowed_layers=36,
            window=8192, hidden_size=5120, intermediate_size=8192, attention_heads=40, kv_heads=8, head_size=128,
            vocabulary_size=202048, vision_heads=16, vision_layers=34, vision_hidden_size=1408, context_length=10485760,
        ),
        token_bytes=196608,  # 48 × 2 × 8 × 128 × 2
    ),
    "Llama-3.2-11B-Vision": Published(
        {
            "architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "mllama_text_model", "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
                "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
                "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "vocab_size": 128256,
            },
            "vision_config": {
                "attention_heads": 16, "hidden_size": 1280, "image_size": 560, "max_num_tiles": 4,
                "num_hidden_layers": 32, "patch_size": 14, "vision_output_dim": 7680,
            },
        },
        Architecture(
            name="MllamaForConditionalGeneration", category="llm", layers=40, attention_layers=32,
            fixed_bytes=209846272,  # 8 layers × 4 × 1601 patches × 2 × 8 × 128 × 2
            hidden_size=4096, intermediate_size=14336, attention_heads=32, kv_heads=8, head_size=128,
            vocabulary_size=128256, vision_heads=16, vision_layers=32, vision_hidden_size=1280, context_length=131072,
        ),
        token_bytes=131072,  # 32 × 2 × 8 × 128 × 2
    ),
    "llava-1.5-7b": Published(  # whose nested part tells only what differs from LlamaConfig
        {
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "torch_dtype": "float16",
            "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
                "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "vocab_size": 32000,
            },
            "vocab_size": 32064,
        },
        Architecture(
            name="LlavaForConditionalGeneration", category="llm", layers=32, attention_layers=32, hidden_size=4096,
            intermediate_size=11008, attention_heads=32, kv_heads=32, head_size=128, vocabulary_size=32064,
            vision_heads=16, vision_layers=24, vision_hidden_size=1024, context_length=4096,
        ),
        token_bytes=524288,  # 32 × 2 × 32 × 128 × 2
    ),
    "Qwen2.5-7B": Published(
        a_qwen2(28, 3584, 28, 4, 18944), is_a_qwen2(28, 3584, 28, 4, 18944),
        token_bytes=57344,  # 28 × 2 × 4 × 128 × 2
    ),
    "Qwen2.5-72B": Published(
        a_qwen2(80, 8192, 64, 8, 29568), is_a_qwen2(80, 8192, 64, 8, 29568),
        token_bytes=327680,  # 80 × 2 × 8 × 128 × 2
    ),
    "Qwen2.5-7B-Instruct-AWQ": Published(
        a_qwen2(28, 3584, 28, 4, 18944, torch_dtype="float16", quantization_config={
            "bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm",
            "zero_point": True,
        }),
        is_a_qwen2(28, 3584, 28, 4, 18944, quantization="awq"),
        token_bytes=57344,
    ),
    "Qwen2.5-72B-Instruct-GPTQ-Int4": Published(
        a_qwen2(80, 8192, 64, 8, 29696, torch_dtype="float16", quantization_config={
            "bits": 4, "desc_act": False, "group_size": 128, "quant_method": "gptq", "sym": True,
        }),
        is_a_qwen2(80, 8192, 64, 8, 29696, quantization="gptq"),
        token_bytes=327680,
    ),
    "Qwen3-8B": Published(
        a_qwen3(36, 4096, 32, 8, 12288), is_a_qwen3(36, 4096, 32, 8, 12288),
        token_bytes=147456,  # 36 × 2 × 8 × 128 × 2
    ),
    "Qwen3-32B": Published(  # whose heads together are wider than its hidden size
        a_qwen3(64, 5120, 64, 8, 25600), is_a_qwen3(64, 5120, 64, 8, 25600),
        token_bytes=262144,  # 64 × 2 × 8 × 128 × 2
    ),
    "Qwen3-8B with YaRN": Published(
        a_qwen3(36, 4096, 32, 8, 12288, rope_scaling={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        }),
        is_a_qwen3(36, 4096, 32, 8, 12288, context_length=131072),
        token_bytes=147456,
    ),
    "Qwen3-30B-A3B": Published(
        a_qwen3(48, 2048, 32, 4, 6144, "Qwen3MoeForCausalLM", num_experts=128, moe_intermediate_size=768),
        is_a_qwen3(48, 2048, 32, 4, 6144, name="Qwen3MoeForCausalLM"),
        token_bytes=98304,  # 48 × 2 × 4 × 128 × 2
    ),
    "Qwen3-235B-A22B-FP8": Published(
        a_qwen3(94, 4096, 64, 4, 12288, "Qwen3MoeForCausalLM", num_experts=128, quantization_config={
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        }),
        is_a_qwen3(94, 4096, 64, 4, 12288, name="Qwen3MoeForCausalLM", quantization="fp8"),
        token_bytes=192512,  # 94 × 2 × 4 × 128 × 2
    ),
    "Qwen3-Embedding-0.6B": Published(  # that it embeds, its other files say
        a_qwen3(28, 1024, 16, 8, 3072, vocab_size=151669, max_position_embeddings=32768),
        is_a_qwen3(28, 1024, 16, 8, 3072, vocabulary_size=151669, context_length=32768),
        token_bytes=114688,  # 28 × 2 × 8 × 128 × 2
    ),
    "Qwen3-Reranker-0.6B as a classifier": Published(
        a_qwen3(28, 1024, 16, 8, 3072, "Qwen3ForSequenceClassification", vocab_size=151669),
        is_a_qwen3(28, 1024, 16, 8, 3072, name="Qwen3ForSequenceClassification", category="reranker", vocabulary_size=151669),
        token_bytes=114688,
    ),
    "Qwen3-Next-80B-A3B": Published(
        {
            "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "full_attention_interval": 4,
            "head_dim": 256, "hidden_size": 2048, "intermediate_size": 5120, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "linear_value_head_dim": 128, "max_position_embeddings": 262144, "num_attention_heads": 16,
            "num_experts": 512, "num_hidden_layers": 48, "num_key_value_heads": 2, "torch_dtype": "bfloat16",
            "vocab_size": 151936,
        },
        Architecture(
            name="Qwen3NextForCausalLM", category="llm", layers=48, attention_layers=12,
            fixed_bytes=77266944,  # 36 × ((2 × 16 × 128 + 32 × 128) × 3 × 2 + 32 × 128 × 128 × 4)
            hidden_size=2048, intermediate_size=5120, attention_heads=16, kv_heads=2, head_size=256,
            vocabulary_size=151936, context_length=262144,
        ),
        token_bytes=24576,  # 12 × 2 × 2 × 256 × 2
    ),
    "Qwen2.5-VL-7B": Published(
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 3584,
            "intermediate_size": 18944, "max_position_embeddings": 128000, "max_window_layers": 28,
            "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 32768,
            "use_sliding_window": False, "torch_dtype": "bfloat16", "vocab_size": 152064,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "vision_config": {
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        Architecture(
            name="Qwen2_5_VLForConditionalGeneration", category="llm", layers=28, attention_layers=28, hidden_size=3584,
            intermediate_size=18944, attention_heads=28, kv_heads=4, head_size=128, vocabulary_size=152064,
            vision_heads=16, vision_layers=32, vision_hidden_size=1280, context_length=128000,
        ),
        token_bytes=57344,  # 28 × 2 × 4 × 128 × 2
    ),
    "Qwen3-VL-8B": Published(
        {
            "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
            "text_config": {
                "model_type": "qwen3_vl_text", "dtype": "bfloat16", "head_dim": 128, "hidden_size": 4096,
                "intermediate_size": 12288, "max_position_embeddings": 262144, "num_attention_heads": 32,
                "num_hidden_layers": 36, "num_key_value_heads": 8, "vocab_size": 151936,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            },
            "vision_config": {
                "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
                "num_heads": 16, "out_hidden_size": 4096, "patch_size": 16,
            },
        },
        Architecture(
            name="Qwen3VLForConditionalGeneration", category="llm", layers=36, attention_layers=36, hidden_size=4096,
            intermediate_size=12288, attention_heads=32, kv_heads=8, head_size=128, vocabulary_size=151936,
            vision_heads=16, vision_layers=27, vision_hidden_size=1152, context_length=262144,
        ),
        token_bytes=147456,  # 36 × 2 × 8 × 128 × 2
    ),
    "Qwen3-Omni-30B-A3B": Published(  # nested twice
        {
            "architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe",
            "thinker_config": {
                "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20},
                "model_type": "qwen3_omni_moe_thinker", "dtype": "bfloat16",
                "text_config": {
                    "head_dim": 128, "hidden_size": 2048, "intermediate_size": 768, "max_position_embeddings": 65536,
                    "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4, "vocab_size": 152064,
                },
                "vision_config": {"depth": 27, "hidden_size": 1152, "num_heads": 16},
            },
        },
        Architecture(
            name="Qwen3OmniMoeForConditionalGeneration", category="llm", layers=48, attention_layers=48,
            hidden_size=2048, intermediate_size=768, attention_heads=32, kv_heads=4, head_size=128,
            vocabulary_size=152064, vision_heads=16, vision_layers=27, vision_hidden_size=1152, context_length=65536,
        ),
        token_bytes=98304,  # 48 × 2 × 4 × 128 × 2
    ),
    "DeepSeek-V3": Published(DEEPSEEK_V3, IS_DEEPSEEK_V3, token_bytes=70272),  # 61 × (512 + 64) × 2
    "DeepSeek-R1": Published(DEEPSEEK_V3, IS_DEEPSEEK_V3, token_bytes=70272),
    "DeepSeek-V2-Lite": Published(
        {
            "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 2048,
            "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
            "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
            "rope_scaling": {"factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"},
            "torch_dtype": "bfloat16",
        },
        Architecture(
            name="DeepseekV2ForCausalLM", category="llm", layers=27, attention_layers=27, hidden_size=2048,
            intermediate_size=10944, attention_heads=16, kv_heads=16, head_size=192, value_size=128, latent_size=576,
            vocabulary_size=102400, context_length=163840,
        ),
        token_bytes=31104,  # 27 × (512 + 64) × 2
    ),
    "MiniCPM3-4B": Published(
        {
            "architectures": ["MiniCPM3ForCausalLM"], "model_type": "minicpm3", "hidden_size": 2560,
            "intermediate_size": 6400, "kv_lora_rank": 256, "max_position_embeddings": 32768,
            "num_attention_heads": 40, "num_hidden_layers": 62, "num_key_value_heads": 40, "q_lora_rank": 768,
            "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "torch_dtype": "bfloat16", "vocab_size": 73448,
            "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32768},
        },
        Architecture(
            name="MiniCPM3ForCausalLM", category="llm", layers=62, attention_layers=62, hidden_size=2560,
            intermediate_size=6400, attention_heads=40, kv_heads=40, head_size=96,
            vocabulary_size=73448, context_length=32768,
        ),
        token_bytes=952320,  # 62 × 2 × 40 × 96 × 2: its latent vector is not what vLLM keeps
    ),
    "Mistral-7B-v0.1": Published(
        {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "sliding_window": 4096, "torch_dtype": "bfloat16",
            "vocab_size": 32000,
        },
        Architecture(
            name="MistralForCausalLM", category="llm", layers=32, attention_layers=32, windowed_layers=32, window=4096,
            hidden_size=4096, intermediate_size=14336, attention_heads=32, kv_heads=8, head_size=128,
            vocabulary_size=32000, context_length=32768,
        ),
        token_bytes=131072,  # 32 × 2 × 8 × 128 × 2
    ),
    "Mixtral-8x7B": Published(
        a_mixtral(32, 4096, 32, 14336, 32768),
        Architecture(
            name="MixtralForCausalLM", category="llm", layers=32, attention_layers=32, hidden_size=4096,
            intermediate_size=14336, attention_heads=32, kv_heads=8, head_size=128, vocabulary_size=32000,
            context_length=32768,
        ),
        token_bytes=131072,  # 32 × 2 × 8 × 128 × 2
    ),
    "Mixtral-8x22B": Published(
        a_mixtral(56, 6144, 48, 16384, 65536),
        Architecture(
            name="MixtralForCausalLM", category="llm", layers=56, attention_layers=56, hidden_size=6144,
            intermediate_size=16384, attention_heads=48, kv_heads=8, head_size=128, vocabulary_size=32000,
            context_length=65536,
        ),
        token_bytes=229376,  # 56 × 2 × 8 × 128 × 2
    ),
    "DBRX": Published(
        {
            "architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "attn_config": {"clip_qkv": 8, "kv_n_heads": 8},
            "d_model": 6144, "max_seq_len": 32768, "n_heads": 48, "n_layers": 40, "torch_dtype": "bfloat16",
            "vocab_size": 100352,
        },
        Architecture(
            name="DbrxForCausalLM", category="llm", layers=40, attention_layers=40, hidden_size=6144,
            intermediate_size=24576, attention_heads=48, kv_heads=8, head_size=128, vocabulary_size=100352,
            context_length=32768,
        ),
        token_bytes=163840,  # 40 × 2 × 8 × 128 × 2
    ),
    "gemma-2-9b": Published(
        {
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 256, "hidden_size": 3584,
            "intermediate_size": 14336, "max_position_embeddings": 8192, "num_attention_heads": 16,
            "num_hidden_layers": 42, "num_key_value_heads": 8, "sliding_window": 4096, "torch_dtype": "float32",
            "vocab_size": 256000,
        },
        Architecture(
            name="Gemma2ForCausalLM", category="llm", layers=42, attention_layers=42, windowed_layers=21, window=4096,
            hidden_size=3584, intermediate_size=14336, attention_heads=16, kv_heads=8, head_size=256,
            vocabulary_size=256000, context_length=8192, element_bytes=4,
        ),
        token_bytes=688128,  # 42 × 2 × 8 × 256 × 4
    ),
    "gemma-3-27b": Published(
        {
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "gemma3_text", "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504,
                "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
                "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
            },
        },
        Architecture(
            name="Gemma3ForConditionalGeneration", category="llm", layers=62, attention_layers=62, windowed_layers=52,
            window=1024, hidden_size=5376, intermediate_size=21504, attention_heads=32, kv_heads=16, head_size=128,
            vocabulary_size=262208, vision_heads=16, vision_layers=27, vision_hidden_size=1152, context_length=131072,
        ),
        token_bytes=507904,  # 62 × 2 × 16 × 128 × 2
    ),
    "gemma-3-4b": Published(  # whose heads are those of its class
        {
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27},
        },
        Architecture(
            name="Gemma3ForConditionalGeneration", category="llm", layers=34, attention_layers=34, windowed_layers=29,
            window=1024, hidden_size=2560, intermediate_size=10240, attention_heads=8, kv_heads=4, head_size=256,
            vocabulary_size=262208, vision_heads=16, vision_layers=27, vision_hidden_size=1152, context_length=131072,
        ),
        token_bytes=139264,  # 34 × 2 × 4 × 256 × 2
    ),
    "gemma-3n-E4B": Published(  # the last 15 layers read what others keep
        {
            "architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "gemma3n_text", "head_dim": 256, "hidden_size": 2048, "intermediate_size": [16384] * 35,
                "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7, "max_position_embeddings": 32768,
                "num_attention_heads": 8, "num_hidden_layers": 35, "num_key_value_heads": 2, "num_kv_shared_layers": 15,
                "sliding_window": 512, "vocab_size": 262400,
            },
            "vision_config": {"architecture": "mobilenetv5_300m_enc", "hidden_size": 2048},
        },
        Architecture(
            name="Gemma3nForConditionalGeneration", category="llm", layers=35, attention_layers=20, windowed_layers=16,
            window=512, hidden_size=2048, intermediate_size=16384, attention_heads=8, kv_heads=2, head_size=256,
            vocabulary_size=262400, vision_hidden_size=2048, context_length=32768,
        ),
        token_bytes=40960,  # 20 × 2 × 2 × 256 × 2
    ),
    "gemma-4-E2B": Published(  # the layers that see everything have larger heads; the last 20 read what others keep
        {
            "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "dtype": "bfloat16",
            "text_config": {
                "model_type": "gemma4_text", "global_head_dim": 512, "head_dim": 256, "hidden_size": 1536,
                "intermediate_size": 6144, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
                "max_position_embeddings": 131072, "num_attention_heads": 8, "num_global_key_value_heads": None,
                "num_hidden_layers": 35, "num_key_value_heads": 1, "num_kv_shared_layers": 20, "sliding_window": 512,
                "vocab_size": 262144,
            },
        },
        Architecture(
            name="Gemma4ForConditionalGeneration", category="llm", layers=35, attention_layers=15, windowed_layers=12,
            window=512, hidden_size=1536, intermediate_size=6144, attention_heads=8, kv_heads=1, head_size=256,
            full_head_size=512, vocabulary_size=262144, context_length=131072,
        ),
        token_bytes=18432,  # (12 × 2 × 256 + 3 × 2 × 512) × 2
    ),
    "gemma-4-31B": Published(  # … and fewer
        {
            "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "dtype": "bfloat16",
            "text_config": {
                "model_type": "gemma4_text", "attention_k_eq_v": True, "global_head_dim": 512, "head_dim": 256,
                "hidden_size": 5376, "intermediate_size": 21504,
                "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
                "max_position_embeddings": 262144, "num_attention_heads": 32, "num_global_key_value_heads": 4,
                "num_hidden_layers": 60, "num_key_value_heads": 16, "num_kv_shared_layers": 0, "sliding_window": 1024,
                "vocab_size": 262144,
            },
        },
        Architecture(
            name="Gemma4ForConditionalGeneration", category="llm", layers=60, attention_layers=60, windowed_layers=50,
            window=1024, hidden_size=5376, intermediate_size=21504, attention_heads=32, kv_heads=16, head_size=256,
            full_kv_heads=4, full_head_size=512, vocabulary_size=262144, context_length=262144,
        ),
        token_bytes=901120,  # (50 × 2 × 16 × 256 + 10 × 2 × 4 × 512) × 2
    ),
    "Nemotron-NAS": Published(  # of four blocks two have attention, one of them with more KV heads
        {
            "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "hidden_size": 8192,
            "block_configs": [
                {"attention": {"n_heads_in_group": 8, "no_op": False}, "ffn": {"ffn_mult": 2.625}},
                {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 1.0}},
                {"attention": {"n_heads_in_group": None, "no_op": False, "replace_with_linear": True}},
                {"attention": {"n_heads_in_group": 4, "no_op": False}},
            ],
            "max_position_embeddings": 131072, "num_attention_heads": 64, "num_hidden_layers": 4,
            "num_key_value_heads": None, "torch_dtype": "bfloat16", "vocab_size": 128256,
        },
        Architecture(
            name="DeciLMForCausalLM", category="llm", layers=4, attention_layers=2, hidden_size=8192,
            intermediate_size=32768, attention_heads=64, kv_heads=16, head_size=128, vocabulary_size=128256,
            context_length=131072,
        ),
        token_bytes=16384,  # 2 × 2 × 16 × 128 × 2, the largest for both
    ),
    "gpt-oss-120b": Published(
        {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 64, "hidden_size": 2880,
            "initial_context_length": 4096, "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 18, "max_position_embeddings": 131072,
            "num_attention_heads": 64, "num_hidden_layers": 36, "num_key_value_heads": 8, "sliding_window": 128,
            "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
            "rope_scaling": {"factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn"},
            "vocab_size": 201088,
        },
        Architecture(
            name="GptOssForCausalLM", category="llm", layers=36, attention_layers=36, windowed_layers=18, window=128,
            hidden_size=2880, intermediate_size=2880, attention_heads=64, kv_heads=8, head_size=64,
            vocabulary_size=201088, context_length=131072, quantization="mxfp4",
        ),
        token_bytes=73728,  # 36 × 2 × 8 × 64 × 2
    ),
    "Phi-3-mini-4k": Published(
        {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 32, "rope_scaling": None, "sliding_window": 2047, "torch_dtype": "bfloat16",
            "vocab_size": 32064,
        },
        Architecture(
            name="Phi3ForCausalLM", category="llm", layers=32, attention_layers=32, windowed_layers=32, window=2047,
            hidden_size=3072, intermediate_size=8192, attention_heads=32, kv_heads=32, head_size=96,
            vocabulary_size=32064, context_length=4096,
        ),
        token_bytes=393216,  # 32 × 2 × 32 × 96 × 2
    ),
    "phi-4": Published(
        {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 5120, "intermediate_size": 17920,
            "max_position_embeddings": 16384, "num_attention_heads": 40, "num_hidden_layers": 40,
            "num_key_value_heads": 10, "rope_scaling": None, "sliding_window": None, "torch_dtype": "bfloat16",
            "vocab_size": 100352,
        },
        Architecture(
            name="Phi3ForCausalLM", category="llm", layers=40, attention_layers=40, hidden_size=5120,
            intermediate_size=17920, attention_heads=40, kv_heads=10, head_size=128, vocabulary_size=100352,
            context_length=16384,
        ),
        token_bytes=204800,  # 40 × 2 × 10 × 128 × 2
    ),
    "GLM-4-9B-0414": Published(
        {
            "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "head_dim": 128, "hidden_size": 4096,
            "intermediate_size": 13696, "max_position_embeddings": 32768, "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 2, "torch_dtype": "bfloat16", "vocab_size": 151552,
        },
        Architecture(
            name="Glm4ForCausalLM", category="llm", layers=40, attention_layers=40, hidden_size=4096,
            intermediate_size=13696, attention_heads=32, kv_heads=2, head_size=128, vocabulary_size=151552,
            context_length=32768,
        ),
        token_bytes=40960,  # 40 × 2 × 2 × 128 × 2
    ),
    "chatglm3-6b": Published(
        {
            "architectures": ["ChatGLMModel"], "model_type": "chatglm", "ffn_hidden_size": 13696, "hidden_size": 4096,
            "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32,
            "num_layers": 28, "padded_vocab_size": 65024, "seq_length": 8192, "torch_dtype": "float16",
        },
        Architecture(
            name="ChatGLMModel", category="llm", layers=28, attention_layers=28, hidden_size=4096,
            intermediate_size=13696, attention_heads=32, kv_heads=2, head_size=128, vocabulary_size=65024,
            context_length=8192,
        ),
        token_bytes=28672,  # 28 × 2 × 2 × 128 × 2
    ),
    "InternVL2_5-8B": Published(
        {
            "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "torch_dtype": "bfloat16",
            "llm_config": {
                "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_size": 4096,
                "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 92553,
                "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            },
            "vision_config": {
                "architectures": ["InternVisionModel"], "hidden_size": 1024, "image_size": 448,
                "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
            },
        },
        Architecture(
            name="InternVLChatModel", category="llm", layers=32, attention_layers=32, hidden_size=4096,
            intermediate_size=14336, attention_heads=32, kv_heads=8, head_size=128, vocabulary_size=92553,
            vision_heads=16, vision_layers=24, vision_hidden_size=1024, context_length=65536,
        ),
        token_bytes=131072,  # 32 × 2 × 8 × 128 × 2
    ),
    "falcon-7b": Published(
        {
            "architectures": ["FalconForCausalLM"], "model_type": "falcon", "alibi": False, "hidden_size": 4544,
            "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32,
            "num_kv_heads": 71, "torch_dtype": "bfloat16", "vocab_size": 65024,
        },
        Architecture(
            name="FalconForCausalLM", category="llm", layers=32, attention_layers=32, hidden_size=4544,
            intermediate_size=18176, attention_heads=71, kv_heads=1, head_size=64, vocabulary_size=65024,
        ),
        token_bytes=8192,  # 32 × 2 × 1 × 64 × 2
    ),
    "falcon-40b": Published(
        {
            "architectures": ["FalconForCausalLM"], "model_type": "falcon", "alibi": False, "hidden_size": 8192,
            "multi_query": True, "new_decoder_architecture": True, "num_attention_heads": 128, "num_hidden_layers": 60,
            "num_kv_heads": 8, "torch_dtype": "bfloat16", "vocab_size": 65024,
        },
        Architecture(
            name="FalconForCausalLM", category="llm", layers=60, attention_layers=60, hidden_size=8192,
            intermediate_size=32768, attention_heads=128, kv_heads=8, head_size=64, vocabulary_size=65024,
        ),
        token_bytes=122880,  # 60 × 2 × 8 × 64 × 2
    ),
    "gpt2": Published(
        {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
        },
        Architecture(
            name="GPT2LMHeadModel", category="llm", layers=12, attention_layers=12, hidden_size=768,
            intermediate_size=3072, attention_heads=12, kv_heads=12, head_size=64, vocabulary_size=50257,
            context_length=1024,
        ),
        token_bytes=36864,  # 12 × 2 × 12 × 64 × 2
    ),
    "bloom-7b1": Published(  # positions as a bias, so any length would do; trained on 2048
        {
            "architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 4096, "n_head": 32,
            "n_layer": 30, "seq_length": 2048, "torch_dtype": "float16", "vocab_size": 250880,
        },
        Architecture(
            name="BloomForCausalLM", category="llm", layers=30, attention_layers=30, hidden_size=4096,
            intermediate_size=16384, attention_heads=32, kv_heads=32, head_size=128, vocabulary_size=250880,
            context_length=2048,
        ),
        token_bytes=491520,  # 30 × 2 × 32 × 128 × 2
    ),
    "Jamba-v0.1": Published(
        {
            "architectures": ["JambaForCausalLM"], "model_type": "jamba", "attn_layer_offset": 4, "attn_layer_period": 8,
            "expert_layer_offset": 1, "expert_layer_period": 2, "hidden_size": 4096, "intermediate_size": 14336,
            "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2, "max_position_embeddings": 262144,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "sliding_window": None,
            "torch_dtype": "bfloat16", "vocab_size": 65536,
        },
        Architecture(
            name="JambaForCausalLM", category="llm", layers=32, attention_layers=4,
            fixed_bytes=16056320,  # 28 × (8192 × 3 × 2 + 8192 × 16 × 4)
            hidden_size=4096, intermediate_size=14336, attention_heads=32, kv_heads=8, head_size=128,
            vocabulary_size=65536, context_length=262144,
        ),
        token_bytes=16384,  # 4 × 2 × 8 × 128 × 2
    ),
    "Nemotron-H-8B": Published(
        {
            "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "attention_head_dim": 128,
            "conv_kernel": 4, "hidden_size": 4096, "intermediate_size": 21504, "mamba_head_dim": 64,
            "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
            "mamba_num_heads": 128, "max_position_embeddings": 8192, "n_groups": 8, "num_attention_heads": 32,
            "num_hidden_layers": 52, "num_key_value_heads": 8, "ssm_state_size": 128, "torch_dtype": "bfloat16",
            "vocab_size": 131072,
        },
        Architecture(
            name="NemotronHForCausalLM", category="llm", layers=52, attention_layers=4,
            fixed_bytes=102137856,  # 24 × ((8192 + 2 × 8 × 128) × 3 × 2 + 8192 × 128 × 4)
            hidden_size=4096, intermediate_size=21504, attention_heads=32, kv_heads=8, head_size=128,
            vocabulary_size=131072, context_length=8192,
        ),
        token_bytes=16384,  # 4 × 2 × 8 × 128 × 2
    ),
    "granite-4.0-h-small": Published(
        {
            "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", "hidden_size": 4096,
            "intermediate_size": 768, "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
            "mamba_d_conv": 4, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1,
            "mamba_n_heads": 128, "max_position_embeddings": 131072, "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "torch_dtype": "bfloat16", "vocab_size": 100352,
        },
        Architecture(
            name="GraniteMoeHybridForCausalLM", category="llm", layers=40, attention_layers=4,
            fixed_bytes=152819712,  # 36 × ((8192 + 2 × 128) × 3 × 2 + 8192 × 128 × 4)
            hidden_size=4096, intermediate_size=768, attention_heads=32, kv_heads=8, head_size=128,
            vocabulary_size=100352, context_length=131072,
        ),
        token_bytes=16384,  # 4 × 2 × 8 × 128 × 2
    ),
    "LFM2-1.2B": Published(
        {
            "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "conv_L_cache": 3,
            "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048, "intermediate_size": 12288,
            "max_position_embeddings": 128000, "num_attention_heads": 32, "num_hidden_layers": 16,
            "num_key_value_heads": 8, "torch_dtype": "bfloat16", "vocab_size": 65536,
        },
        Architecture(
            name="Lfm2ForCausalLM", category="llm", layers=16, attention_layers=6,
            fixed_bytes=81920,  # 10 × 2048 × 2 × 2
            hidden_size=2048, intermediate_size=12288, attention_heads=32, kv_heads=8, head_size=64,
            vocabulary_size=65536, context_length=128000,
        ),
        token_bytes=12288,  # 6 × 2 × 8 × 64 × 2
    ),
    "MiniMax-Text-01": Published(
        {
            "architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax_text_01",
            "attn_type_list": ([0] * 7 + [1]) * 10, "head_dim": 128, "hidden_size": 6144, "intermediate_size": 9216,
            "max_position_embeddings": 10240000, "num_attention_heads": 64, "num_hidden_layers": 80,
            "num_key_value_heads": 8, "torch_dtype": "bfloat16", "vocab_size": 200064,
        },
        Architecture(
            name="MiniMaxText01ForCausalLM", category="llm", layers=80, attention_layers=10,
            fixed_bytes=293601280,  # 70 × 64 × 128 × 128 × 4
            hidden_size=6144, intermediate_size=9216, attention_heads=64, kv_heads=8, head_size=128,
            vocabulary_size=200064, context_length=10240000,
        ),
        token_bytes=40960,  # 10 × 2 × 8 × 128 × 2
    ),
    "mamba-2.8b": Published(
        {
            "architectures": ["MambaForCausalLM"], "model_type": "mamba", "conv_kernel": 4, "expand": 2,
            "hidden_size": 2560, "intermediate_size": 5120, "num_hidden_layers": 64, "state_size": 16,
            "torch_dtype": "float32", "vocab_size": 50280,
        },
        Architecture(
            name="MambaForCausalLM", category="llm", layers=64, attention_layers=0,
            fixed_bytes=24903680,  # 64 × (5120 × 3 × 4 + 5120 × 16 × 4)
            hidden_size=2560, intermediate_size=5120, vocabulary_size=50280, element_bytes=4,
        ),
        token_bytes=0,
    ),
    "bge-base-en-v1.5": Published(
        {
            "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072,
            "max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
            "torch_dtype": "float32", "vocab_size": 30522,
        },
        Architecture(
            name="BertModel", category="embedding", layers=12, attention_layers=0, hidden_size=768,
            intermediate_size=3072, attention_heads=12, kv_heads=12, head_size=64, vocabulary_size=30522,
            context_length=512, element_bytes=4,
        ),
        token_bytes=0,
    ),
    "bge-m3": Published(XLM_ROBERTA, IS_XLM_ROBERTA, token_bytes=0),
    "bge-reranker-v2-m3": Published(
        {**XLM_ROBERTA, "architectures": ["XLMRobertaForSequenceClassification"]},
        replace(IS_XLM_ROBERTA, name="XLMRobertaForSequenceClassification", category="reranker"),
        token_bytes=0,
    ),
    "whisper-large-v3": Published(
        {
            "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": 1280,
            "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "decoder_layers": 32, "encoder_attention_heads": 20,
            "encoder_layers": 32, "is_encoder_decoder": True, "max_source_positions": 1500, "max_target_positions": 448,
            "num_hidden_layers": 32, "torch_dtype": "float16", "vocab_size": 51866,
        },
        Architecture(
            name="WhisperForConditionalGeneration", category="speech_to_text", layers=32, attention_layers=32,
            fixed_bytes=245760000,  # 32 × 1500 frames × 2 × 20 × 64 × 2
            hidden_size=1280, intermediate_size=5120, attention_heads=20, kv_heads=20, head_size=64,
            vocabulary_size=51866, context_length=448,
        ),
        token_bytes=163840,  # 32 × 2 × 20 × 64 × 2
    ),
}  # fmt: skip
