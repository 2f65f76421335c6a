"""The only room that knows DeepSpeed: a run's settings to an engine, and its state to whole tensors and back."""
