"""Configuration keys of DeepSpeed 0.19.8: known, removed, or set by the trainer from the recipe.

DeepSpeed ignores unknown top-level keys, so they are listed here; a test compares the lists with DeepSpeed's own.
"""

from typing import Literal

Kind = Literal["switch", "count", "number", "text", "block"]

KNOWN: dict[str, Kind] = {
    "activation_checkpointing": "block",
    "aio": "block",
    "autotuning": "block",
    "checkpoint": "block",
    "comet": "block",
    "comms_logger": "block",
    "communication_data_type": "text",
    "compile": "block",
    "csv_monitor": "block",
    "data_efficiency": "block",
    "data_types": "block",
    "dataloader_drop_last": "switch",
    "datastates_ckpt": "block",
    "disable_allgather": "switch",
    "disable_python_gc": "switch",
    "dump_state": "switch",
    "flops_profiler": "block",
    "gradient_allreduce_op": "text",
    "gradient_predivide_factor": "number",
    "hybrid_engine": "block",
    "log_level": "text",
    "managed_gradient_accumulation": "switch",
    "memory_breakdown": "switch",
    "prescale_gradients": "switch",
    "seq_parallel_communication_data_type": "text",
    "steps_per_print": "count",
    "tensorboard": "block",
    "timers": "block",
    "vocabulary_size": "count",
    "wall_clock_breakdown": "switch",
    "wandb": "block",
    "weight_quantization": "block",
    "zero_allow_untested_optimizer": "switch",
    "zero_force_ds_cpu_optimizer": "switch",
    "zero_optimization": "block",
}

FROM_RECIPE: dict[str, str] = {
    "train_batch_size": "batch.passages",
    "train_micro_batch_size_per_gpu": "batch.passages and batch.micro_batches",
    "gradient_accumulation_steps": "batch.micro_batches",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "the section optimizer",
    "scheduler": "optimizer.warmup",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "torch_autocast": "precision",
}
"""Keys that the trainer sets, and the recipe key that each value comes from."""

_SHARDING = "bali-ds shards a model by ZeRO alone; set zero_optimization.stage to 3"
UNSUPPORTED: dict[str, str] = {
    "expert_parallel": f"is for mixtures of experts; {_SHARDING}",
    "pipeline": f"needs a model that is cut into stages; {_SHARDING}",
    "tensor_parallel": f"needs layers that are cut into slices; {_SHARDING}",
    "use_data_before_expert_parallelism": f"is for mixtures of experts; {_SHARDING}",
}
"""Keys of kinds of parallelism that the trainer does not have, and what to use instead."""

REMOVED: dict[str, str] = {
    "amp": "Apex mixed precision was removed; set precision in the recipe",
    "compression_training": "the compression library was removed",
    "curriculum_learning": "the legacy curriculum was removed",
    "eigenvalue": "mixture of quantization was removed",
    "elasticity": "elastic training was removed; a run resumes on any number of ranks by itself",
    "graph_harvesting": "graph harvesting was removed",
    "nebula": "Nebula checkpoints were removed",
    "progressive_layer_drop": "progressive layer dropping was removed",
    "quantize_training": "mixture of quantization was removed",
    "sparse_attention": "sparse attention was removed",
    "sparse_gradients": "compressed embedding gradients were removed",
}

ZERO: dict[str, Kind] = {
    "stage": "count",
    "contiguous_gradients": "switch",
    "reduce_scatter": "switch",
    "reduce_bucket_size": "count",
    "use_multi_rank_bucket_allreduce": "switch",
    "allgather_partitions": "switch",
    "allgather_bucket_size": "count",
    "overlap_comm": "switch",
    "compute_grad_norm": "switch",
    "load_from_fp32_weights": "switch",
    "elastic_checkpoint": "switch",
    "offload_param": "block",
    "offload_optimizer": "block",
    "zenflow": "block",
    "sub_group_size": "count",
    "stage3_prefetch_bucket_size": "count",
    "stage3_param_persistence_threshold": "count",
    "stage3_model_persistence_threshold": "count",
    "stage3_max_live_parameters": "count",
    "stage3_max_reuse_distance": "count",
    "stage3_gather_16bit_weights_on_model_save": "switch",
    "stage3_module_granularity_threshold": "count",
    "stage3_use_all_reduce_for_fetch_params": "switch",
    "stage3_allgather_sequential": "switch",
    "ignore_unused_parameters": "switch",
    "legacy_stage1": "switch",
    "round_robin_gradients": "switch",
    "parameter_alignment": "switch",
    "zero_hpz_partition_size": "count",
    "zero_quantized_weights": "switch",
    "zero_quantized_nontrainable_weights": "switch",
    "zero_quantized_gradients": "switch",
    "memory_efficient_linear": "switch",
    "pipeline_loading_checkpoint": "switch",
    "override_module_apply": "switch",
    "log_trace_cache_warnings": "switch",
    "enable_sanity_checks": "switch",
    "save_muon_momentum_buffer_in_memory": "switch",
    "leaf_module": "block",
}

_UNQUANTIZED = "remove it; zero_hpz_partition_size, which gathers weights within a host, is the part of ZeRO++ to use"
QUANTIZED: dict[str, str] = {
    "zero_quantized_weights": f"rounds weights to 8 bits, which is not supported; {_UNQUANTIZED}",
    "zero_quantized_nontrainable_weights": f"rounds weights to 8 bits, which is not supported; {_UNQUANTIZED}",
    # DeepSpeed's quantizer interprets bf16 gradients as fp16
    "zero_quantized_gradients": f"corrupts bf16 gradients; {_UNQUANTIZED}",
}
"""Keys of quantized communication (ZeRO++, Wang et al., ICLR 2024), and what to use instead."""

REMOVED_ZERO: dict[str, str] = {
    "cpu_offload": "write offload_optimizer instead",
    "cpu_offload_param": "write offload_param instead",
    "cpu_offload_use_pin_memory": "write pin_memory inside offload_optimizer and offload_param instead",
    "mics_hierarchical_params_gather": "MiCS sharding was removed",
    "mics_shard_size": "MiCS sharding was removed; zero_hpz_partition_size keeps a copy on each host",
    "stage3_gather_fp16_weights_on_model_save": "write stage3_gather_16bit_weights_on_model_save instead",
    "zeropp_loco_param": "LoCo was removed",
}
