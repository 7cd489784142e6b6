"""The preparation of raw logs, beside pandas and Polars."""
