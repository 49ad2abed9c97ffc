"""From clip features to scores: heads, training, evaluation, and the command line."""
