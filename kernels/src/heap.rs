//! How the C library's heap gives memory of tensors back.
//!
//! glibc raises, with every large block that is freed, the size from which a block is a mapping of its own, up to 32 MiB.
//! Slabs of a decode then come from the heap, where what is freed between two blocks stays: a 2048² picture of the demo
//! model held 817 MiB at its widest, and holds 621 MiB with the sizes fixed.

/// From this size on a block is a mapping of its own, and returned when it is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM_BYTES: libc::c_int = 16 << 20;
/// What is free at the end of the heap is returned beyond this. With the other size fixed it would be 128 KiB, and every
/// layer's tensors would be cleared pages again: a step took a fifth longer.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 32 << 20;

/// Has large blocks returned to the system when they are freed. To be called first in a program; does nothing where the C
/// library is not glibc.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and changes a setting of the allocator under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
