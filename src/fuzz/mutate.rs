//! Damage: bits flipped, pieces cut, doubled, swapped with another input's, lengths made wild.

use crate::types::Rng;

/// Numbers that lengths, counts and indexes fail at.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// A good input with some damage; now and then it stays whole, or is noise from the start.
pub(crate) fn mutate(good: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let one = |rng: &mut Rng| good.get(rng.below(good.len() as u64) as usize).cloned();
    let mut bytes = match rng.below(20) {
        0 => noise(rng, 64),
        _ => one(rng).unwrap_or_default(),
    };
    for _ in 0..rng.below(5) {
        damage(&mut bytes, rng, &one);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, rng: &mut Rng, other: &impl Fn(&mut Rng) -> Option<Vec<u8>>) {
    let place = |rng: &mut Rng, len: usize| rng.below(len as u64 + 1) as usize;
    let at = place(rng, bytes.len());
    match rng.below(10) {
        0 | 1 => flip(bytes, at, 1 << rng.below(8)),
        2 => flip(bytes, at, rng.next_u64() as u8 | 1),
        3 => bytes.truncate(at),
        4 => bytes.extend(noise(rng, 16)),
        5 => {
            let to = place(rng, bytes.len());
            drop(bytes.drain(at.min(to)..at.max(to)));
        }
        6 => {
            let to = place(rng, bytes.len()).min(at + 256);
            let piece = bytes[at.min(to)..to].to_vec();
            bytes.splice(at..at, piece);
        }
        7 => {
            let Some(other) = other(rng) else { return };
            let from = place(rng, other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        8 if rng.below(2) == 0 => write_edge(bytes, at, rng),
        8 => replace_number(bytes, at, rng),
        _ => {
            let mut number = EDGES[rng.below(EDGES.len() as u64) as usize];
            let mut varint = Vec::new();
            while number > 0x7f {
                varint.push(number as u8 | 0x80);
                number >>= 7;
            }
            varint.push(number as u8);
            let end = bytes.len().min(at + rng.below(3) as usize);
            bytes.splice(at..end, varint);
        }
    }
}

fn flip(bytes: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= bits;
    }
}

/// Writes a number over what is there, in either order of bytes.
fn write_edge(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    let number = EDGES[rng.below(EDGES.len() as u64) as usize];
    let width = [1, 2, 4, 8][rng.below(4) as usize];
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    let written = if rng.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
    let room = bytes.len().saturating_sub(at).min(width);
    if room > 0 {
        bytes[at..at + room].copy_from_slice(&written[..room]);
    }
}

/// Puts another number in the place of the next one that is written in decimal digits.
fn replace_number(bytes: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = bytes[at..].iter().position(digit).map(|start| at + start) else { return };
    let length = bytes[start..].iter().take_while(|byte| digit(byte)).count();
    let mut number = EDGES[rng.below(EDGES.len() as u64) as usize].to_string();
    if rng.below(4) == 0 {
        number.insert(0, '-');
    }
    bytes.splice(start..start + length, number.into_bytes());
}

fn noise(rng: &mut Rng, most: u64) -> Vec<u8> {
    (0..rng.below(most)).map(|_| rng.next_u64() as u8).collect()
}
