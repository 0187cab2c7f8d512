//! Tests of the kernels through their public face: right values, rows that do not see each other, and equal
//! bits on every instruction set that multiplies and adds with one rounding.

mod isa;
mod random;
mod splits;
mod values;
