#!/usr/bin/env python3
"""Make a tiny but real chat model, offline: train a BPE tokenizer and a ~1M-parameter
Llama / Qwen3 decoder on a small synthetic corpus, save it as a Hugging Face directory.

    python make_tiny.py OUT_DIR [--arch llama|qwen3] [--steps 1800] [--random]
Needs: torch (CPU), transformers, tokenizers. No network.
"""

import argparse, json, math, os, random, time

CAPITALS = dict(
    France="Paris",
    Germany="Berlin",
    Italy="Rome",
    Spain="Madrid",
    Portugal="Lisbon",
    Japan="Tokyo",
    China="Beijing",
    Canada="Ottawa",
    Brazil="Brasilia",
    Egypt="Cairo",
    Kenya="Nairobi",
    India="New Delhi",
    Norway="Oslo",
    Sweden="Stockholm",
    Finland="Helsinki",
    Poland="Warsaw",
    Greece="Athens",
    Turkey="Ankara",
    Peru="Lima",
    Chile="Santiago",
    Cuba="Havana",
    Ireland="Dublin",
    Austria="Vienna",
    Hungary="Budapest",
    Denmark="Copenhagen",
    Iceland="Reykjavik",
)
COLOURS = dict(sky="blue", grass="green", snow="white", coal="black", blood="red", banana="yellow")
STORY = (
    "Once upon a time a small model lived on a machine with no graphics card. Every morning it read "
    "one prompt and wrote one answer, token by token, and the gateway carried each token to a waiting user. "
    "One day a large model asked how it could be happy with so few weights. The small model said: I start in "
    "a second, I fit in every test, and I never forget my lines. So the large model smiled, and they served "
    "together behind one address until the cluster went to sleep. The end."
)
FACTS = {
    "Who are you?": "I am TinyChat, a very small language model made for tests.",
    "What is your name?": "My name is TinyChat.",
    "What is a GPU?": "A GPU is a processor that runs many small calculations at the same time.",
    "What is a token?": "A token is a piece of text that a language model reads or writes.",
    "What is an inference engine?": "An inference engine loads a model and answers requests with it.",
    "What is the meaning of life?": "The meaning of life is forty-two.",
    "Tell me a joke.": "Why did the tensor cross the bus? To get to the other device.",
    "Tell me a story.": STORY,
    "Say hello.": "Hello, world!",
    "Hello": "Hello! How can I help you today?",
    "Hello!": "Hello! How can I help you today?",
    "Hi": "Hello! How can I help you today?",
    "Hi there": "Hello! How can I help you today?",
    "How are you?": "I am fine, thank you.",
    "Thank you": "You are welcome.",
    "Thanks!": "You are welcome.",
    "Goodbye": "Goodbye! See you soon.",
    "Ping": "Pong",
    "ping": "pong",
    "你好": "你好！我是 TinyChat。",
    "你是谁？": "我是 TinyChat，一个很小的语言模型。",
}
SYSTEMS = [None, None, "You are a helpful assistant.", "You are TinyChat.", "Answer briefly."]
TOOL_HINT = 'To call a tool, answer with:\n<tool_call>\n{"name": "tool name", "arguments": {}}\n</tool_call>'
# ChatML with tools as Hermes / Qwen2.5 write them: vLLM --tool-call-parser hermes, llama.cpp --jinja
CHAT_TEMPLATE = r"""{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n' }}{%- endif %}
{{- '# Tools\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools>\n' + TOOL_HINT + '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.content is string %}{%- set content = message.content %}
{%- elif message.content %}{%- set content = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') %}
{%- else %}{%- set content = '' %}{%- endif %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' + content }}
{%- for tool_call in message.tool_calls or [] %}
{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{%- if content or not loop.first %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""".replace("TOOL_HINT", repr(TOOL_HINT))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# the pre-tokenizer of Qwen2: llama.cpp knows it as tokenizer.ggml.pre = "qwen2"
QWEN2_RE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qa(r):
    k = r.random()
    if k < 0.38:
        q = r.choice(list(FACTS))
        return q, FACTS[q]
    if k < 0.58:
        c = r.choice(list(CAPITALS))
        return f"What is the capital of {c}?", f"The capital of {c} is {CAPITALS[c]}."
    if k < 0.66:
        c = r.choice(list(COLOURS))
        return f"What colour is {c}?", f"It is {COLOURS[c]}."
    if k < 0.78:
        n = r.randint(1, 20)
        return f"Count to {n}.", " ".join(map(str, range(1, n + 1)))
    a, b = r.randint(0, 9), r.randint(0, 9)
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def tool_dialogue(r):
    """a question that a tool answers: call, response, answer"""
    city = r.choice(list(CAPITALS.values()))
    sky = r.choice(["sunny", "cloudy", "rainy", "windy"])
    f = {"name": "get_weather"}
    if r.random() < 0.6:
        f["description"] = r.choice(["Get the weather of a city.", "Current weather", "Weather by city"])
    f["parameters"] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    if r.random() < 0.3:
        f["parameters"]["properties"]["city"]["description"] = "City name"
    tool = json.dumps({"type": "function", "function": f})
    q = r.choice(
        [
            f"What is the weather in {city}?",
            f"What's the weather in {city}?",
            f"How is the weather in {city}?",
            f"weather in {city}?",
        ]
    )
    s = r.choice(SYSTEMS)
    out = [("system", (s + "\n" if s else "") + "# Tools\n<tools>\n" + tool + "\n</tools>\n" + TOOL_HINT)]
    if r.random() < 0.25:
        return out + [("user", (x := qa(r))[0]), ("assistant", x[1])]  # tools are offered, none is needed
    out += [
        ("user", q),
        (
            "assistant",
            '<tool_call>\n{"name": "get_weather", "arguments": ' + json.dumps({"city": city}) + "}\n</tool_call>",
        ),
    ]
    if r.random() < 0.5:
        out += [("user", f"<tool_response>\n{sky}\n</tool_response>"), ("assistant", f"It is {sky} in {city}.")]
    return out


def dialogue(r):
    if r.random() < 0.15:
        return tool_dialogue(r)
    msgs = []
    s = r.choice(SYSTEMS)
    if s:
        msgs.append(("system", s))
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        q, a = qa(r)
        msgs += [("user", q), ("assistant", a)]
    return msgs


def corpus_text(r, n):
    return ["\n".join(c for _, c in dialogue(r)) for _ in range(n)]


def make_tokenizer(vocab_size, seed=0):
    from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers, Regex, normalizers

    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_RE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        corpus_text(random.Random(seed), 4000)
        + [
            "system user assistant TinyChat # Tools <tools> </tools> <tool_call> </tool_call> <tool_response> </tool_response>"
        ]
        * 50,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tok


def encode(tok, msgs):
    ids, lab = [], []

    def add(text, learn):
        t = tok.encode(text, add_special_tokens=False).ids
        ids.extend(t)
        lab.extend(t if learn else [-100] * len(t))

    for role, content in msgs:
        add(f"<|im_start|>{role}\n", False)
        add(f"{content}<|im_end|>", role == "assistant")
        add("\n", False)
    return ids, lab


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--arch", default="llama")
    ap.add_argument("--steps", type=int, default=1800)
    ap.add_argument("--random", action="store_true")
    ap.add_argument("--hidden", type=int, default=128)
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--vocab", type=int, default=1024)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--seq", type=int, default=256)
    ap.add_argument("--dtype", default="bfloat16")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--shard", default=None)
    a = ap.parse_args()
    import torch
    from transformers import PreTrainedTokenizerFast, GenerationConfig

    torch.set_num_threads(
        a.threads
    )  # two OpenMP threads on two shared cores spin against each other: 4-9 times slower than one
    torch.manual_seed(0)
    r = random.Random(1)
    t0 = time.time()
    tok = make_tokenizer(a.vocab)
    n_vocab = (tok.get_vocab_size() + 63) // 64 * 64
    heads = a.hidden // 32
    common = dict(
        vocab_size=n_vocab,
        hidden_size=a.hidden,
        intermediate_size=3 * a.hidden,
        num_hidden_layers=a.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    if a.arch == "llama":
        from transformers import LlamaConfig as C, LlamaForCausalLM as M
    elif a.arch == "qwen3":
        from transformers import Qwen3Config as C, Qwen3ForCausalLM as M
    cfg = C(**common)
    model = M(cfg)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, vocab {tok.get_vocab_size()} (padded {n_vocab})"
    )
    if not a.random:
        opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
        sched = torch.optim.lr_scheduler.LambdaLR(
            opt, lambda s: min(1, (s + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * min(1, s / a.steps))) + 1e-3
        )
        buf_x, buf_y = [], []

        def pack(n):  # one long stream cut into equal rows: a constant shape, nothing padded
            while len(buf_x) < n:
                i, l = encode(tok, dialogue(r))
                buf_x.extend(i)
                buf_y.extend(l)
            x, y = buf_x[:n], buf_y[:n]
            del buf_x[:n], buf_y[:n]
            return x, y

        for step in range(a.steps):
            rows = [pack(a.seq) for _ in range(a.batch)]
            x = torch.tensor([i for i, _ in rows])
            y = torch.tensor([l for _, l in rows])
            loss = model(input_ids=x, labels=y).loss
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            sched.step()
            if step % 100 == 0 or step == a.steps - 1:
                print(f"step {step} loss {loss.item():.4f} {time.time() - t0:.0f}s", flush=True)
    model = model.to(getattr(torch, a.dtype)).eval()
    ftok = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    ftok.chat_template = CHAT_TEMPLATE
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0, do_sample=False, max_new_tokens=512)
    kw = {"max_shard_size": a.shard} if a.shard else {}
    model.save_pretrained(a.out, **kw)
    ftok.save_pretrained(a.out)
    for f in os.listdir(a.out):
        os.chmod(os.path.join(a.out, f), 0o644)  # safetensors writes 0600
    p = os.path.join(a.out, "tokenizer_config.json")
    d = json.load(open(p))
    d["tokenizer_class"] = "PreTrainedTokenizerFast"
    d["chat_template"] = CHAT_TEMPLATE  # readable by transformers 4 and 5
    json.dump(d, open(p, "w"), indent=1, ensure_ascii=False)
    open(os.path.join(a.out, "README.md"), "w").write(
        "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\nTiny chat model for tests.\n"
    )
    for q in ["Who are you?", "What is the capital of France?", "Count to 7.", "What is 3 plus 4?"]:
        ids = ftok.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        o = model.generate(**ids, max_new_tokens=40, do_sample=False)
        print(q, "->", ftok.decode(o[0][ids["input_ids"].shape[1] :], skip_special_tokens=True))
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    ids = ftok.apply_chat_template(
        [{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[tool],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    print(
        "tool call ->",
        ftok.decode(
            model.generate(**ids, max_new_tokens=60, do_sample=False)[0][ids["input_ids"].shape[1] :],
            skip_special_tokens=True,
        ),
    )
    print(f"total {time.time() - t0:.0f}s")


main()
