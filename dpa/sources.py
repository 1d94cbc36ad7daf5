"""Where the values of the recipes stand: in the paper, in the released scripts, or with us."""

from __future__ import annotations

# Where a value stands, by field of Recipe, by field of StageSettings, or by "stage.field".
SOURCES = {
    "llm": "paper; released scripts exist for Llama-3.1-8B with BLIP-LCS alone and are taken over for all others",
    "vision_tower": "paper: CLIP ViT-L/14; released scripts: 336 px, layer -2",
    "captions": "paper",
    "instructions": "paper: Cambrian-737K",
    "caption_count": "paper, Table 8: 200K of each set; elsewhere all",
    "fraction": "paper, Tables 4 and 14; here one share for captions and instructions",
    "proxy": "paper: PMO",
    "weighting": "paper: CMO clips to 0.05 and 0.5, each sample's weights sum to 1; CAL paper: logits to 1 and 5; the released "
    "code falls back to 0 and 1 and normalises each micro-batch (--weighting-form released)",
    "weighted_stages": "paper: connector and instruct; Table 11 takes one away",
    **dict.fromkeys(("lora_rank", "lora_alpha"), "paper; released scripts agree; Tables 6 and 15 vary it"),
    "chat_template": "ours: the tokenizer's own; for Vicuna's, which has none, LLaVA-1.5's conversation",
    "instruct_from": "paper: the original LLM; Tables 7 and 16 try the proxy",
    "anyres": "ours: the paper and the released scripts have one picture of 336 px",
    "image_scale": "ours: Gemma-2's image features times sqrt(hidden), as the paper's software did; today's does not",
    "attention": "ours: sdpa, for Gemma-2 (soft-cap in attention) eager; released scripts: flash attention",
    **dict.fromkeys(("learning_rate", "global_batch", "epochs"), "paper; released scripts agree"),
    "max_steps": "ours: -1 leaves the steps to the epochs",
    **dict.fromkeys(
        ("bf16", "num_workers", "max_length", "warmup", "schedule", "weight_decay"),
        "released scripts; the paper is silent",
    ),
    "activation_checkpointing": "ours: where memory asks for it; released scripts always; changes no number",
    "instruct.pad": "released scripts; the paper is silent",
    "micro_batch": "ours: a 7B LLM fits 80 GB (ZeRO-2 on 8 GPUs) without activation checkpointing, which costs a forward "
    "pass; released scripts 16, 32 and 8; changes no number in the paper form, accumulation fills up",
    "packed": "ours: several samples share a row where that leaves fewer empty places; changes no number",
    "group_by_length": "ours: the scripts group stage instruct alone; random global batches, each in order of length",
    "instruct.group_by_length": "released scripts, which part the modalities before; here global batches stay random",
    "proxy.pad": "no pictures in this stage",
    "connector.pad": "released scripts give no option, whose default scales and crops; the paper is silent",
}
