"""results/report.html: tables, figures and runs as one static file to browse, made of what `report` computes.

`content` gathers what the page shows as plain values, `html` puts them into the page, whose own files are in static/.
Nothing here imports torch.
"""

from dual_lora.page.html import document, same

__all__ = ["document", "same"]
