"""Answers that are improved until they pass: `Refine`, its record, batches, and the record's pictures."""
