"""How a video is scored, and what the scores of many come to: protocols, accuracies, calibration, errors; all pure."""
