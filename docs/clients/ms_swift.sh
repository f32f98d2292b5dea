#!/bin/sh
# ms-swift: sh docs/clients/ms_swift.sh MODEL DATASET FOLDER [more settings of swift sft]
model=$1 dataset=$2 folder=$3
shift 3
plugin=$(python -c "from importlib.util import find_spec; print(find_spec('dual_lora.integrations.ms_swift').origin)")
swift sft --external_plugins "$plugin" --tuner_type dual_lora --callbacks dual_lora_warmup \
    --lora_rank 32 --lora_alpha 64 --target_modules q_proj k_proj v_proj up_proj down_proj \
    --model "$model" --dataset "$dataset" --output_dir "$folder" --learning_rate 4e-4 "$@"
