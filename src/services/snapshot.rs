//! The opening of a watch that begins with what is there now, in pieces that fit into responses.

use prost::Message;

/// How many bytes of items one opening response holds, unless one item alone is larger.
const PIECE_BYTES_MAX: usize = 512 * 1024;

/// Cuts items into responses. `respond` is told whether a piece is the last one; there is always
/// one, if only to say that nothing is there.
pub(crate) fn opening<T: Message, R>(
    items: impl IntoIterator<Item = T>,
    respond: impl Fn(Vec<T>, bool) -> R,
) -> Vec<R> {
    let (mut responses, mut piece, mut bytes) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let size = item.encoded_len();
        if bytes + size > PIECE_BYTES_MAX && !piece.is_empty() {
            responses.push(respond(core::mem::take(&mut piece), false));
            bytes = 0;
        }
        bytes += size;
        piece.push(item);
    }
    responses.push(respond(piece, true));
    responses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_hold_everything_once_and_only_the_last_says_so() {
        let text = "x".repeat(PIECE_BYTES_MAX / 3);
        let pieces = |count: usize| -> Vec<(usize, bool)> {
            opening(vec![text.clone(); count], |piece: Vec<String>, done| (piece.len(), done))
        };
        assert_eq!(pieces(0), [(0, true)]);
        assert_eq!(pieces(2), [(2, true)]);
        assert_eq!(pieces(5), [(2, false), (2, false), (1, true)]);
        let large = "x".repeat(2 * PIECE_BYTES_MAX);
        let pieces = opening([large.clone(), large], |piece, _| piece.len());
        assert_eq!(pieces, [1, 1]);
    }
}
