//! The start of a static executable, in the place of glibc's: without asking the processor what it can do.
//!
//! Before `main`, a static glibc asks the processor for its abilities and for the sizes of its caches, to choose among its
//! dozen ways to copy memory (sysdeps/x86/cpu-features.c and dl-cacheinfo.h). It asks some forty times, by CPUID. A virtual
//! machine can't answer that by itself: it leaves for its host each time, and where hosts are virtual, too, for theirs. That
//! was 170 to 200 of the 500 µs that a plugin's exec took, for a program that copies a few kilobytes. Here no one asks, and
//! what every processor of the architecture can do is used.
//!
//! The rest is done as glibc does it in csu/libc-start.c (2.36 to 2.41, `!SHARED`) and in its order: the auxiliary vector,
//! the choice of indirect functions, thread-local storage, the guards of the stack and of pointers, glibc's own initialisers,
//! those of the program, `main`, and exit(3). Left out is what a plugin has no use for:
//! - `GLIBC_TUNABLES` of the environment, what a debugger wants to know, and the relocation of a position-independent
//!   executable, which this isn't;
//! - what it takes to load libraries: dlopen(3) compares what they need with what the processor can do. No plugin loads any,
//!   and none may look up names of hosts, users or groups (nss(5));
//! - `.fini_array`, in which a plugin has nothing of its own, and pthread_exit(3) of the main thread;
//! - the standard descriptors of a setuid program, which [`enter`](super::enter) opens for any.
//!
//! # Safety
//!
//! What is called here belongs to glibc, by names that are no interface. So `deploy/build.sh` sets the cfg `own_start`, which
//! alone puts this into an executable, only where glibc's own start defines and needs exactly the names that it did when this
//! was written (`deploy/glibc-start`). Elsewhere glibc starts by itself. The linker takes what is defined by
//! [`program!`](crate::program) instead of the member of the archive that holds glibc's start; a name that is missing, or
//! there twice, is an error of the linker.
//!
//! Until the indirect functions are chosen nothing here may copy, fill or compare memory, and until there is thread-local
//! storage nothing may set `errno`: the loops below are over pointers, and call nothing else. The choice reads
//! `_dl_x86_cpu_features`, which stays zero: no ability beyond the architecture's.

use std::ffi::{c_char, c_int, c_void};

/// C's `main`, with the environment.
pub type Main = unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;

/// An initialiser, or an entry of `.init_array`.
type Initialiser = unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char);

/// What a signal's frame may take on a stack, where the kernel doesn't tell (`AT_MINSIGSTKSZ`, since 5.14) and glibc would ask
/// the processor: with all registers of AVX-512 and AMX 11 KiB.
const SIGNAL_STACK: usize = 16 << 10;

/// `Elf64_Rela`.
#[derive(Debug)]
#[repr(C)]
struct Relocation {
    offset: *mut *const c_void,
    info: u64,
    addend: unsafe extern "C" fn() -> *const c_void,
}

#[allow(unsafe_code)]
unsafe extern "C" {
    static mut __environ: *mut *mut c_char;
    static mut __libc_stack_end: *mut c_void;
    /// 16 bytes that the kernel has made at random, somewhere on the stack (`AT_RANDOM` of getauxval(3)).
    static _dl_random: *const [u64; 2];
    static mut _dl_minsigstacksize: usize;
    static __rela_iplt_start: [Relocation; 0];
    static __rela_iplt_end: [Relocation; 0];
    static __preinit_array_start: [Initialiser; 0];
    static __preinit_array_end: [Initialiser; 0];
    static __init_array_start: [Initialiser; 0];
    static __init_array_end: [Initialiser; 0];

    fn _dl_aux_init(vector: *mut c_void);
    fn __libc_setup_tls();
    fn __libc_early_init(initial: bool);
    fn __libc_init_first(argc: c_int, argv: *mut *mut c_char, environment: *mut *mut c_char);
    fn _init();
    fn exit(code: c_int) -> !;
}

/// Runs `main` and ends the process with its answer.
///
/// # Safety
///
/// To be called by crt1's `_start` in the place of `__libc_start_main`, with its arguments, and by no one else.
#[allow(unsafe_code)]
#[inline(always)] // Else it would be in every program that uses this crate, dynamic ones included.
pub unsafe fn begin(main: Main, argc: c_int, argv: *mut *mut c_char, stack_end: *mut c_void) -> ! {
    // SAFETY: see the head of this module; the kernel puts the environment behind the arguments, and the auxiliary vector
    // behind that, each after a null (System V ABI for AMD64, 3.4.1).
    unsafe {
        let environment = argv.offset(argc as isize + 1);
        __environ = environment;
        __libc_stack_end = stack_end;
        let mut end = environment;
        while !(*end).is_null() {
            end = end.add(1);
        }
        _dl_aux_init(end.add(1).cast());
        if _dl_minsigstacksize == 0 {
            _dl_minsigstacksize = SIGNAL_STACK;
        }
        choose_functions();
        __libc_setup_tls();
        set_guards();
        __libc_early_init(true);
        __libc_init_first(argc, argv, environment);
        initialise(&raw const __preinit_array_start, &raw const __preinit_array_end, argc, argv, environment);
        _init();
        initialise(&raw const __init_array_start, &raw const __init_array_end, argc, argv, environment);
        exit(main(argc, argv, environment))
    }
}

/// Lets every indirect function (`R_X86_64_IRELATIVE`, the only kind in this table) say which it is.
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn choose_functions() {
    let mut relocation = (&raw const __rela_iplt_start).cast::<Relocation>();
    let end = (&raw const __rela_iplt_end).cast::<Relocation>();
    while relocation != end {
        // SAFETY: the linker has made the table; what it tells of lies in this executable, and can still be written.
        unsafe {
            *(*relocation).offset = ((*relocation).addend)();
            relocation = relocation.add(1);
        }
    }
}

/// At random, so that who overwrites a return address on the stack, or a pointer that glibc keeps, can't know what to write.
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn set_guards() {
    // SAFETY: the places are glibc's for this architecture (`tcbhead_t` of sysdeps/x86_64/nptl/tls.h).
    unsafe {
        let [stack, pointer] = _dl_random.read_unaligned();
        // A string can't run over the zero in front: csu/dl-osinfo.h.
        std::arch::asm!("mov fs:[0x28], {}", in(reg) stack & !0xff, options(nostack, preserves_flags));
        std::arch::asm!("mov fs:[0x30], {}", in(reg) pointer, options(nostack, preserves_flags));
    }
}

/// Calls what is in a table of the program.
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn initialise(
    start: *const [Initialiser; 0],
    end: *const [Initialiser; 0],
    argc: c_int,
    argv: *mut *mut c_char,
    environment: *mut *mut c_char,
) {
    let mut entry = start.cast::<Initialiser>();
    while entry != end.cast() {
        // SAFETY: the linker has made the table.
        unsafe {
            (*entry)(argc, argv, environment);
            entry = entry.add(1);
        }
    }
}

/// Defines what glibc's start defines: the start, and what its ways to copy memory go by.
///
/// The figures are glibc's own for a processor of which it knows nothing (2.36, sysdeps/x86/cacheinfo.h), and those that it
/// makes of them (dl-cacheinfo.h): three quarters of the shared cache from which on it writes around the caches.
#[macro_export]
#[doc(hidden)]
macro_rules! start {
    () => {
        $crate::start! {
            __x86_data_cache_size_half = 32 * 1024 / 2;
            __x86_data_cache_size = 32 * 1024;
            __x86_shared_cache_size_half = 1024 * 1024 / 2;
            __x86_shared_cache_size = 1024 * 1024;
            __x86_shared_non_temporal_threshold = 1024 * 1024 * 3 / 4;
            __x86_memset_non_temporal_threshold = 1024 * 1024 * 3 / 4;
            __x86_rep_movsb_threshold = 2048;
            __x86_rep_stosb_threshold = 2048;
            __x86_rep_movsb_stop_threshold = 1024 * 1024 * 3 / 4;
            __x86_string_control = 0;
            _dl_x86_features_tlsdesc_state_size = 0;
        }
    };
    ($($name:ident = $value:expr;)*) => {
        $(
            #[allow(unsafe_code, non_upper_case_globals)]
            #[unsafe(no_mangle)]
            static $name: ::std::ffi::c_long = $value;
        )*

        // SAFETY of what is exported: see the head of common::entry::start.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn __libc_start_main(
            main: $crate::entry::start::Main,
            argc: ::std::ffi::c_int,
            argv: *mut *mut ::std::ffi::c_char,
            _: *const u8,
            _: *const u8,
            _: *const u8,
            stack_end: *mut ::std::ffi::c_void,
        ) -> ::std::ffi::c_int {
            // SAFETY: this is called by crt1's `_start`.
            unsafe { $crate::entry::start::begin(main, argc, argv, stack_end) }
        }
    };
}
