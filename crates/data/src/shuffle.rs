//! The order of an epoch as a pure function of its seed: nothing has to be stored to resume in the middle.

/// A permutation of `0..len` for one epoch: Fisher-Yates, from the back, with the draw for place `i` hashed from
/// `(seed, epoch, i)`.
///
/// The draw maps 64 random bits onto `0..=i` by multiplication, whose bias is below `len / 2^64`. The order is part of
/// what makes a run reproducible: changing it changes every shuffled run.
pub fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let key = mix(mix(seed) ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        let draw = mix(key ^ mix(i as u64));
        let j = ((u128::from(draw) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

/// One step of SplitMix64: an invertible map in which each input bit reaches each output bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_about_equally_likely() {
        // 6 000 shuffles of 6: each (value, place) pair is expected 1 000 times with a deviation of 29.
        let mut seen = [[0u32; 6]; 6];
        for epoch in 0..6_000 {
            for (place, &value) in permutation(6, 7, epoch).iter().enumerate() {
                seen[value][place] += 1;
            }
        }
        for count in seen.iter().flatten() {
            assert!((850..1_150).contains(count), "{seen:?}");
        }
    }

    #[test]
    fn the_order_is_pinned() {
        assert_eq!(permutation(10, 42, 0), PINNED);
        assert_ne!(permutation(10, 42, 1), PINNED);
        assert_ne!(permutation(10, 43, 0), PINNED);
        assert_eq!(permutation(0, 1, 1), [0usize; 0]);
    }

    const PINNED: [usize; 10] = [8, 5, 6, 1, 9, 2, 3, 4, 7, 0];
}
