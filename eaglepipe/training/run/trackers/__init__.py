"""TensorBoard, wandb and trackio draw a run's numbers; metrics.jsonl, the run's own record, is not among them.

Whatever becomes of a tracker, training goes on: see `guarded`.
"""
