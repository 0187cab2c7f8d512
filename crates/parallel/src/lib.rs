//! Strategies behind the model's two seams, and the executor of a rank's program.

#![forbid(unsafe_code)]
