"""`fedsea bench`: ratios measured side by side in one run, against baselines on the same cores."""
