//! The memory of a plugin: small pieces from lists, without the bookkeeping of malloc(3).
//!
//! A plugin lives for a millisecond and asks some two thousand times for a few bytes. In glibc's allocator that was a third of
//! all instructions of an ADD: each piece has a header that is looked at from both sides, the lists of freed ones are seven
//! long, and then neighbours are joined. Here a piece of up to `LARGEST` bytes comes from the list of its size, or from a
//! block of which nothing is given back before the process ends. Larger ones, and those of the C libraries, are glibc's.
//!
//! Each thread has lists of its own; a piece that another thread gives back goes into that one's.
//!
//! # Safety
//!
//! A piece of a list is as long as its size class, begins at a multiple of `GRAIN` and is in no other list: `Lists::carve`
//! cuts it from a block once, `Lists::take` removes it from its list. Which class a piece is of follows from its layout alone,
//! which the caller must give again when it gives the piece back ([`GlobalAlloc`]), so it comes back to where it is from. While a
//! piece is in a list its first eight bytes, which are aligned for it, hold the address of the next one.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

/// Bytes between two sizes, and what every piece is aligned to.
const GRAIN: usize = 16;
/// Bytes of the largest piece that comes from a list.
const LARGEST: usize = 1024;
/// Bytes that are asked for at once.
const BLOCK: usize = 32 << 10;

/// The allocator of a plugin's executable.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

thread_local! {
    static LISTS: Lists = const { Lists::new() };
}

/// The pieces of one thread that are free, by size, and what is left of its block.
struct Lists {
    free: [Cell<*mut u8>; LARGEST / GRAIN],
    block: Cell<*mut u8>,
    left: Cell<usize>,
}

impl Lists {
    const fn new() -> Lists {
        Lists {
            free: [const { Cell::new(ptr::null_mut()) }; LARGEST / GRAIN],
            block: Cell::new(ptr::null_mut()),
            left: Cell::new(0),
        }
    }

    fn take(&self, class: usize) -> *mut u8 {
        let Some(list) = self.free.get(class) else { return ptr::null_mut() };
        let first = list.get();
        if first.is_null() {
            return self.carve((class + 1) * GRAIN);
        }
        // SAFETY: a piece of a list holds the address of the next one.
        list.set(unsafe { first.cast::<*mut u8>().read() });
        first
    }

    fn give(&self, class: usize, piece: *mut u8) {
        let Some(list) = self.free.get(class) else { return };
        // SAFETY: the piece is at least GRAIN bytes long, aligned to that, and nobody else's any more.
        unsafe { piece.cast::<*mut u8>().write(list.get()) };
        list.set(piece);
    }

    fn carve(&self, len: usize) -> *mut u8 {
        if self.left.get() < len {
            // SAFETY: the layout is not empty.
            let block = unsafe { System.alloc(const { Layout::new::<[u128; BLOCK / GRAIN]>() }) };
            if block.is_null() {
                return block;
            }
            self.block.set(block);
            self.left.set(BLOCK);
        }
        let piece = self.block.get();
        // SAFETY: so much is left of the block.
        self.block.set(unsafe { piece.add(len) });
        self.left.set(self.left.get() - len);
        piece
    }
}

/// The list of this layout; `None` if glibc serves it.
fn class(layout: Layout) -> Option<usize> {
    (layout.size() <= LARGEST && layout.align() <= GRAIN).then(|| layout.size().saturating_sub(1) / GRAIN)
}

// SAFETY: see the head of this module; where glibc serves, its allocator keeps the promises of the trait.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some(class) => LISTS.with(|lists| lists.take(class)),
            // SAFETY: the caller's promises are glibc's.
            None => unsafe { System.alloc(layout) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        match class(layout) {
            Some(class) => LISTS.with(|lists| lists.give(class, piece)),
            // SAFETY: it has no class, so it came from glibc with this layout.
            None => unsafe { System.dealloc(piece, layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else {
            // SAFETY: the caller's promises are glibc's.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let piece = LISTS.with(|lists| lists.take(class));
        if !piece.is_null() {
            // SAFETY: a piece of a class is at least as long as any layout of it.
            unsafe { piece.write_bytes(0, layout.size()) };
        }
        piece
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that this size is one of a layout.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(layout), class(new)) {
            // SAFETY: it has no class, so it came from glibc with this layout, and stays there.
            (None, None) => unsafe { System.realloc(piece, layout, size) },
            (old, new) if old == new => piece,
            // SAFETY: both are as long as what is copied, and two; the old one goes back by its own layout.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(piece, layout.size().min(size));
                    self.dealloc(piece, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A piece, full of one byte.
    struct Piece {
        at: *mut u8,
        layout: Layout,
        byte: u8,
    }

    impl Piece {
        fn new(size: usize, align: usize, byte: u8) -> Piece {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the layout is not empty.
            let at = unsafe { Allocator.alloc(layout) };
            Piece { at, layout, byte }.filled()
        }

        fn filled(self) -> Piece {
            assert!(!self.at.is_null());
            assert_eq!(self.at.addr() % self.layout.align(), 0);
            // SAFETY: the piece is as long as its layout.
            unsafe { self.at.write_bytes(self.byte, self.layout.size()) };
            self
        }

        fn check(&self, len: usize) {
            // SAFETY: so much of the piece was filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.at, len) };
            assert!(bytes.iter().all(|b| *b == self.byte), "a piece of {} bytes was written over", self.layout.size());
        }

        fn resized(self, size: usize) -> Piece {
            // SAFETY: the piece has this layout, and is used no more.
            let at = unsafe { Allocator.realloc(self.at, self.layout, size) };
            let kept = self.layout.size().min(size);
            let layout = Layout::from_size_align(size, self.layout.align()).unwrap();
            let piece = Piece { at, layout, ..self };
            piece.check(kept);
            piece.filled()
        }

        fn freed(self) {
            self.check(self.layout.size());
            // SAFETY: the piece has this layout, and is used no more.
            unsafe { Allocator.dealloc(self.at, self.layout) };
        }
    }

    fn sizes() -> impl Strategy<Value = usize> {
        prop_oneof![1..40usize, 1..1100usize, Just(LARGEST), Just(LARGEST + 1), 1..70_000usize]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn no_piece_lies_in_another(steps in prop::collection::vec((0..4u8, sizes(), 0..7u32, any::<prop::sample::Index>()), 1..120)) {
            let mut living: Vec<Piece> = Vec::new();
            for (number, (what, size, align, which)) in steps.into_iter().enumerate() {
                match what {
                    2 if !living.is_empty() => {
                        let piece = living.swap_remove(which.index(living.len()));
                        living.push(piece.resized(size));
                    }
                    3 if !living.is_empty() => living.swap_remove(which.index(living.len())).freed(),
                    _ => living.push(Piece::new(size, 1 << align, u8::try_from(number % 251).unwrap())),
                }
                living.iter().for_each(|piece| piece.check(piece.layout.size()));
            }
            living.into_iter().for_each(Piece::freed);
        }
    }

    #[test]
    fn a_piece_is_used_again() {
        let first = Piece::new(33, 8, 1);
        let at = first.at;
        first.freed();
        let second = Piece::new(48, 1, 2);
        assert_eq!(second.at, at, "33 and 48 bytes are of one size class");
        let same = second.resized(34);
        assert_eq!(same.at, at, "and nothing moves within it");
        same.freed();
    }

    #[test]
    fn zeroed_pieces_are_so_where_something_else_was() {
        for size in [1, 16, 700, LARGEST, LARGEST + 1] {
            Piece::new(size, 8, 0xff).freed();
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the layout is not empty.
            let at = unsafe { Allocator.alloc_zeroed(layout) };
            Piece { at, layout, byte: 0 }.freed();
        }
    }

    #[test]
    fn a_thread_gives_back_what_another_has_taken() {
        let taken: Vec<(usize, Piece)> =
            (0..100u8).map(|n| (usize::from(n), Piece::new(8 * (1 + usize::from(n)), 8, n))).collect();
        let addresses: Vec<(usize, Layout, u8)> =
            taken.into_iter().map(|(_, p)| (p.at.expose_provenance(), p.layout, p.byte)).collect();
        std::thread::spawn(move || {
            for (at, layout, byte) in addresses {
                Piece { at: ptr::with_exposed_provenance_mut(at), layout, byte }.freed();
            }
            for n in 0..100u8 {
                Piece::new(8 * (1 + usize::from(n)), 8, n).freed();
            }
        })
        .join()
        .unwrap();
    }
}
