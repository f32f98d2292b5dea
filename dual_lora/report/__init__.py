"""From records and published numbers to tables. Reads JSON, CSV and YAML; never imports torch."""
