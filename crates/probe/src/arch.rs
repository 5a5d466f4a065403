//! What depends on the processor: another architecture is another folder beside `x86_64`, with the same functions.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the probe has been built for x86_64 only: src/arch/x86_64 has what another architecture needs");
