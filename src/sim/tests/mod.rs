//! The simulator itself: it finds what it is there to find.

mod planted;
