"""A text encoder with sentence-transformers: the adapter is added to the model, trained, saved with it and loaded.

python docs/clients/embeddings.py MODEL FOLDER
"""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

from dual_lora import DeltaWarmupCallback, DualLoraConfig

name, folder = sys.argv[1:3]
model = SentenceTransformer(name, device="cpu")
model.add_adapter(DualLoraConfig(r_magnitude=4, r_direction=4, alpha=8, task_type="FEATURE_EXTRACTION"))
pairs = Dataset.from_dict({"anchor": ["a b", "c d", "e f", "g h"], "positive": ["b a", "d c", "f e", "h g"]})
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        folder, max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no", use_cpu=True
    ),
    train_dataset=pairs,
    loss=MultipleNegativesRankingLoss(model),
    callbacks=[DeltaWarmupCallback()],
)
trainer.train()
expected = model.encode(["a text"])
model.save_pretrained(f"{folder}/saved")
print(
    "difference after loading",
    abs(SentenceTransformer(f"{folder}/saved", device="cpu").encode(["a text"]) - expected).max(),
)
