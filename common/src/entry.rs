//! Where a plugin begins: at C's `main`, without the start of Rust's runtime.
//!
//! Before Rust's `main` the runtime prepares for what a plugin never does: it reads `/proc/self/maps` to find the stack's
//! guard page, and installs handlers with a stack of their own to report an overflow. That was an eighth of what it took to
//! exec a plugin (60 of 470 µs). What of the runtime's start is needed here is done by [`enter`].
//!
//! A static glibc asks where its executable is (`_dl_get_origin`, elf/dl-origin.c), for `$ORIGIN` in paths of libraries that it
//! may be told to load later. That is a readlink(2) of `/proc/self/exe`, for which the kernel makes the process a directory in
//! procfs: 25 µs. A plugin loads no libraries, so [`program!`](crate::program) answers in the place of glibc that it
//! isn't known, as glibc does where there is no procfs. Nor need glibc know what the processor can do: see `entry/start.rs`.
//!
//! # Safety
//!
//! A function is exported under C's name `main`. It has C's signature, is the only one of that name in the program (the crate
//! has `no_main`), and can't unwind into C: [`crate::plugin::run`] ends the process on a panic. Another is exported as glibc's
//! `_dl_get_origin`, which takes nothing and gives -1 where the answer is unknown (sysdeps/unix/sysv/linux/dl-origin.c). The
//! linker takes it instead of the archive's own member, which holds nothing else. A dynamic program has none.
//!
//! The standard descriptors are used by their numbers. They are open from [`enter`] on, nobody here closes them, and the files
//! made of them are never dropped.

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
pub mod start;

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};

use crate::plugin::{Plugin, run};

/// Makes `main` of a plugin and gives it its allocator; its crate has `#![no_main]`.
#[macro_export]
macro_rules! program {
    ($plugin:ty) => {
        #[global_allocator]
        static ALLOCATOR: $crate::allocator::Allocator = $crate::allocator::Allocator;

        // See the head of common::entry.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn main(_: i32, _: *const *const u8) -> i32 {
            $crate::entry::enter::<$plugin>()
        }

        // See the head of common::entry.
        #[allow(unsafe_code)]
        #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
        #[unsafe(no_mangle)]
        extern "C" fn _dl_get_origin() -> *const u8 {
            std::ptr::without_provenance(usize::MAX)
        }

        #[cfg(own_start)]
        $crate::start!();
    };
}

/// The program from here on; gives its exit code.
pub fn enter<P: Plugin>() -> i32 {
    open_standard_descriptors();
    crate::memory::tell_of_exhaustion();
    // A reader that has gone, and a file that may not grow (RLIMIT_FSIZE), must become an error of write(2), not an end in
    // the middle of a change. Children get an empty mask again from std.
    let _ = SigSet::from_iter([Signal::SIGPIPE, Signal::SIGXFSZ]).thread_block();
    i32::from(!run::<P>())
}

/// A descriptor that the caller has closed would be given to the next file or socket, and stdout be written into it.
fn open_standard_descriptors() {
    for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: this asks about a number, whatever is behind it, and changes nothing.
        #[allow(unsafe_code)]
        let flags = unsafe { libc::fcntl(standard, libc::F_GETFD) };
        if Errno::result(flags) == Err(Errno::EBADF) {
            // open(2) gives the lowest number that is free: this one.
            let _ = File::options().read(true).write(true).open("/dev/null").map(IntoRawFd::into_raw_fd);
        }
    }
}

/// stdin, without the buffer of 8 KiB and the lock that the standard library puts around it.
pub(crate) fn stdin() -> ManuallyDrop<File> {
    standard(libc::STDIN_FILENO)
}

/// stdout, written to at once.
pub(crate) fn stdout() -> ManuallyDrop<File> {
    standard(libc::STDOUT_FILENO)
}

fn standard(number: RawFd) -> ManuallyDrop<File> {
    // SAFETY: see the head of this module.
    #[allow(unsafe_code)]
    ManuallyDrop::new(unsafe { File::from_raw_fd(number) })
}
