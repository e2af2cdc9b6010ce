//! AVX-512 vector helpers around the bf16 tile kernel: packing, decoding 4-bit codes, storing. Masks take care of ends,
//! so nothing falls back to single elements.
//!
//! Rounding uses the hardware's own conversion, which treats subnormal values as zero, as its products do.

use std::arch::x86_64::*;

use half::bf16;

use super::isa::{Dots, GROUP, Isa, Slot, WordRow};
use super::output::{self, Epilogue, Pointer, Target, Tile};
use super::{STEP, TILE_LANES, avx2, avx512_dots, portable};
use crate::pack::ROWS_AHEAD;
use crate::sources::Lut4;

/// Whether this machine runs what is in this module.
pub(super) fn detected() -> bool {
    avx2::detected()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512bf16")
}

pub(super) static ISA: Isa = Isa {
    transpose_bf16,
    lay_pairs,
    turn_step,
    deal_pairs,
    lut4_bf16,
    round,
    store,
    deal_lut4: Some(deal_lut4),
    dots: Some(Dots {
        step: avx512_dots::STEP,
        lay_out: avx512_dots::lay_out,
        dense: avx512_dots::dense,
        lut4: avx512_dots::lut4,
    }),
    ..avx2::ISA
};

/// The lowest `n` of 16 lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= 16 { u16::MAX } else { (1 << n) - 1 }
}

/// Transposes 16 by 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose16(r: &[__m512i; 16]) -> [__m512i; 16] {
    let mut t = *r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    let mut u = t;
    for i in (0..16).step_by(4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Quarter `q` of u[4 g + c] is now column 4 q + c of rows 4 g .. 4 g + 4: gather the quarters.
    let mut out = u;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(u[c], u[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(u[c], u[4 + c]);
        let high = _mm512_shuffle_i32x4::<0b10_00_10_00>(u[8 + c], u[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(u[8 + c], u[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
        out[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
        out[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low2, high2);
        out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low2, high2);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw")]
fn transpose_bf16(rows: &[&[bf16]; GROUP], slot: Slot<'_>) {
    let len = rows[0].len();
    assert!(rows.iter().all(|r| r.len() == len), "transposed rows must be of one length");
    let (words, lanes) = (len.div_ceil(2), (slot.width - slot.lane).min(GROUP));
    assert!(
        words == 0 || (words - 1) * slot.width + slot.lane + lanes <= slot.panel.len(),
        "a group must fit its panel"
    );
    let mut q = 0;
    // Full registers first: masks cost. What a row has too much of goes into the one after it, which is stored later; the last of
    // all has a mask.
    while 2 * q + 32 <= len && lanes + slot.width >= GROUP {
        let mut block = [_mm512_setzero_si512(); 16];
        for (b, row) in block.iter_mut().zip(rows) {
            // SAFETY: elements 2 q .. 2 q + 32 of a row exist; what is asked for is not read.
            unsafe {
                *b = _mm512_loadu_si512(row.as_ptr().add(2 * q).cast());
                if slot.ahead > 0 {
                    _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(2 * q + slot.ahead).cast());
                }
            }
        }
        let columns = transpose16(&block);
        for (i, column) in columns.iter().enumerate() {
            // SAFETY: the lanes of word row q + i lie within the panel by the assertion above; so do 16 words where another row
            // follows.
            unsafe {
                let at = slot.panel.as_mut_ptr().add((q + i) * slot.width + slot.lane);
                if i < 15 || lanes == GROUP || q + 16 < words {
                    _mm512_storeu_si512(at.cast(), *column);
                } else {
                    _mm512_mask_storeu_epi32(at.cast(), first(lanes), *column);
                }
            }
        }
        q += 16;
    }
    for q in (q..words).step_by(16) {
        // Elements past an odd end are zero.
        let left = (len - 2 * q).min(32);
        let mask = if left == 32 { u32::MAX } else { (1 << left) - 1 };
        let mut block = [_mm512_setzero_si512(); 16];
        for (b, row) in block.iter_mut().zip(rows) {
            // SAFETY: the mask covers elements 2 q .. 2 q + left of a row, which exist.
            *b = unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().add(2 * q).cast()) };
        }
        let columns = transpose16(&block);
        for (i, column) in columns.iter().take(words - q).enumerate() {
            let at = (q + i) * slot.width + slot.lane;
            // SAFETY: lanes at .. at + lanes lie within the panel by the assertion above.
            unsafe { _mm512_mask_storeu_epi32(slot.panel.as_mut_ptr().add(at).cast(), first(lanes), *column) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn lay_pairs(row: &[bf16], panel: &mut [u32]) {
    let steps = row.len().div_ceil(2 * STEP);
    assert!(steps == 0 || (steps - 1) * STEP * TILE_LANES + STEP <= panel.len(), "a lane must fit its panel");
    for (s, step) in row.chunks(2 * STEP).enumerate() {
        let mask = if step.len() == 2 * STEP { u32::MAX } else { (1 << step.len()) - 1 };
        // SAFETY: the mask covers the elements of this piece, and the panel has its words by the assertion above.
        unsafe {
            let pairs = _mm512_maskz_loadu_epi16(mask, step.as_ptr().cast());
            _mm512_storeu_si512(panel.as_mut_ptr().add(s * STEP * TILE_LANES).cast(), pairs);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn turn_step(step: &mut [u32; STEP * TILE_LANES]) {
    let mut halves = [[_mm512_setzero_si512(); STEP]; 2];
    for (i, row) in step.chunks_exact(TILE_LANES).enumerate() {
        // SAFETY: a row is 32 words.
        unsafe {
            halves[0][i] = _mm512_loadu_si512(row.as_ptr().cast());
            halves[1][i] = _mm512_loadu_si512(row.as_ptr().add(STEP).cast());
        }
    }
    for (half, lanes) in halves.iter().zip(step.chunks_exact_mut(STEP * STEP)) {
        for (lane, column) in lanes.chunks_exact_mut(STEP).zip(transpose16(half)) {
            // SAFETY: a lane is 16 words.
            unsafe { _mm512_storeu_si512(lane.as_mut_ptr().cast(), column) };
        }
    }
}

/// Orders in which elements of two rows alternate: of 16 and 16 in one register, and the lower and the upper half of 32
/// and 32 in two.
static INTERLEAVE: [[u16; 32]; 3] = [alternate(0, 16), alternate(0, 32), alternate(16, 48)];

const fn alternate(first: u16, second: u16) -> [u16; 32] {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        (order[2 * i], order[2 * i + 1]) = (first + i as u16, second + i as u16);
        i += 1;
    }
    order
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn deal_pairs((even, odd): (&[bf16], &[bf16]), out: WordRow<'_>) {
    let n = even.len().min(odd.len());
    if out.count == 0 {
        return;
    }
    assert!((out.count - 1) * out.stride + out.width <= out.words.len(), "a word row must fit its panels");
    if out.ahead > 0 {
        for row in [even, odd] {
            ask_for(row.as_ptr().wrapping_add(out.ahead).cast(), 2 * n.min(out.count * out.width));
        }
    }
    // SAFETY: each order holds 32 elements.
    let [order, low, high] =
        unsafe { [&INTERLEAVE[0], &INTERLEAVE[1], &INTERLEAVE[2]].map(|it| _mm512_loadu_si512(it.as_ptr().cast())) };
    // Full panels first: masks cost.
    let mut done = 0;
    while out.width == 32 && done < out.count && (done + 1) * 32 <= n {
        // SAFETY: 32 elements from done * 32 lie below n, and 32 words from done * stride within the panels by the
        // assertion above.
        unsafe {
            let e = _mm512_loadu_si512(even.as_ptr().add(done * 32).cast());
            let o = _mm512_loadu_si512(odd.as_ptr().add(done * 32).cast());
            let to: *mut __m512i = out.words.as_mut_ptr().add(done * out.stride).cast();
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(e, low, o));
            _mm512_storeu_si512(to.add(1), _mm512_permutex2var_epi16(e, high, o));
        }
        done += 1;
    }
    // Rows of 14 may spill into the next word row, which is written later.
    while out.width == 14
        && out.spill
        && done < out.count
        && done * 14 + 16 <= n
        && done * out.stride + 16 <= out.words.len()
    {
        // SAFETY: by the loop's conditions.
        unsafe {
            let e = _mm256_loadu_si256(even.as_ptr().add(done * 14).cast());
            let o = _mm256_loadu_si256(odd.as_ptr().add(done * 14).cast());
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(e), o);
            let to = out.words.as_mut_ptr().add(done * out.stride);
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, both));
        }
        done += 1;
    }
    for p in done..out.count {
        for j in (0..out.width).step_by(16) {
            let from = p * out.width + j;
            let mask = first(n.saturating_sub(from));
            let lanes = first(out.width - j);
            // SAFETY: the first mask covers elements below n, the second the words j..width of panel p, which exist by
            // the assertion above. Where the first is empty the pointers may lie past the end, but are not read.
            unsafe {
                let e = _mm256_maskz_loadu_epi16(mask, even.as_ptr().wrapping_add(from).cast());
                let o = _mm256_maskz_loadu_epi16(mask, odd.as_ptr().wrapping_add(from).cast());
                let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(e), o);
                let pairs = _mm512_permutexvar_epi16(order, both);
                _mm512_mask_storeu_epi32(out.words.as_mut_ptr().add(p * out.stride + j).cast(), lanes, pairs);
            }
        }
    }
}

/// Two rows of 32 elements as pairs, of the lower and of the upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleave(even: __m512i, odd: __m512i) -> [__m512i; 2] {
    // SAFETY: each order holds 32 elements.
    let [low, high] = unsafe { [&INTERLEAVE[1], &INTERLEAVE[2]].map(|it| _mm512_loadu_si512(it.as_ptr().cast())) };
    [_mm512_permutex2var_epi16(even, low, odd), _mm512_permutex2var_epi16(even, high, odd)]
}

/// The 16 values of a block, twice: an index of five bits finds the value of its low four.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn block_bf16(table: __m512, scale: f32) -> __m512i {
    let values = _mm512_mul_ps(table, _mm512_set1_ps(scale));
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(values, values)) }
}

/// Elements `at..at + left` (32 at most) of packed codes, then zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn decode32(table: __m512i, packed: &[u8], at: usize, left: usize) -> __m512i {
    let bytes = &packed[at / 2..(at + left).div_ceil(2)];
    // SAFETY: the slice holds what is read, by its length or by the mask.
    let bytes = unsafe {
        if left == 32 {
            _mm_loadu_si128(bytes.as_ptr().cast())
        } else {
            _mm_maskz_loadu_epi8(first(bytes.len()), bytes.as_ptr().cast())
        }
    };
    let wanted = if left == 32 { u32::MAX } else { (1 << left) - 1 };
    _mm512_maskz_mov_epi16(wanted, look_up(table, bytes))
}

/// Asks for the lines of some bytes, which are read later if at all.
#[inline(always)]
fn ask_for(first: *const u8, bytes: usize) {
    for line in 0..=bytes / 64 {
        // SAFETY: this reads nothing, and may be done with any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(64 * line).cast()) };
    }
}

/// As [`ask_for`], of the codes of so many elements some rows further on than the element given.
#[inline(always)]
fn ask_for_codes(l: &Lut4<'_>, at: usize, elements: usize) {
    ask_for(l.packed.as_ptr().wrapping_add((at + ROWS_AHEAD * l.cols) / 2), elements / 2);
}

/// The values of 16 bytes of codes: two bytes a quadword, of which the words become the bits from each nibble on. A
/// word's index is its low four bits, since both halves of the table are the same.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn look_up(table: __m512i, bytes: __m128i) -> __m512i {
    /// Where the bytes of a quadword come from, in bits: the high nibble of a byte is first.
    const NIBBLES: i64 = 0x08_08_0c_0c_00_00_04_04;
    let words = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(NIBBLES), _mm512_cvtepu16_epi64(bytes));
    _mm512_permutexvar_epi16(words, table)
}

/// Looks up the codes of whole bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn run_bf16(table: __m512i, packed: &[u8], out: &mut [bf16]) {
    assert!(packed.len() >= out.len().div_ceil(2), "4-bit codes must cover the elements read");
    let mut from = 0;
    while from + 32 <= out.len() {
        // SAFETY: 32 elements from `from` lie within the slice.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(from).cast(), decode32(table, packed, from, 32)) };
        from += 32;
    }
    let left = out.len() - from;
    if left > 0 {
        // SAFETY: the mask covers the `left` elements from `from`.
        unsafe {
            let to = out.as_mut_ptr().add(from).cast();
            _mm512_mask_storeu_epi16(to, (1 << left) - 1, decode32(table, packed, from, left));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn lut4_bf16(l: &Lut4<'_>, start: usize, out: &mut [bf16]) {
    // SAFETY: the table holds 16 floats.
    let table = unsafe { _mm512_loadu_ps(l.table.as_ptr()) };
    ask_for_codes(l, start, out.len());
    let (mut at, mut out, mut block) = (start, out, start / l.block_size);
    if at % 2 == 1 && !out.is_empty() {
        // A first element in a low nibble.
        portable::lut4_bf16(l, at, &mut out[..1]);
        (at, out) = (at + 1, &mut out[1..]);
        block = at / l.block_size;
    }
    while !out.is_empty() {
        let len = ((block + 1) * l.block_size - at).min(out.len());
        let (piece, rest) = out.split_at_mut(len);
        run_bf16(block_bf16(table, l.scales.get(block)), &l.packed[at / 2..(at + len).div_ceil(2)], piece);
        (at, block, out) = (at + len, block + 1, rest);
    }
}

/// Decodes as much of two rows as the panels have lanes and deals them out, by 32 elements of one block each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
fn deal_lut4(l: &Lut4<'_>, starts: [usize; 2], out: WordRow<'_>) {
    const LANES: usize = 32;
    let whole = |n: usize| n.is_multiple_of(LANES);
    assert!(
        out.width == LANES && whole(l.block_size) && starts.into_iter().all(whole),
        "rows of blocks must begin with whole lanes"
    );
    assert!(
        out.count == 0 || (out.count - 1) * out.stride + LANES <= out.words.len(),
        "a word row must fit its panels"
    );
    // SAFETY: the table holds 16 floats, and each order 32 elements.
    let (values, [low, high]) = unsafe {
        let orders = [&INTERLEAVE[1], &INTERLEAVE[2]].map(|it| _mm512_loadu_si512(it.as_ptr().cast()));
        (_mm512_loadu_ps(l.table.as_ptr()), orders)
    };
    for start in starts {
        ask_for_codes(l, start, out.count * LANES);
    }
    let mut tables = [_mm512_setzero_si512(); 2];
    let mut blocks = [usize::MAX; 2];
    for p in 0..out.count {
        let mut rows = [_mm512_setzero_si512(); 2];
        for i in 0..2 {
            let at = starts[i] + p * LANES;
            let block = at / l.block_size;
            if block != blocks[i] {
                blocks[i] = block;
                tables[i] = block_bf16(values, l.scales.get(block));
            }
            rows[i] = decode32(tables[i], l.packed, at, LANES);
        }
        // SAFETY: 32 words from p * stride lie within the panels by the assertion above.
        unsafe {
            let to: *mut __m512i = out.words.as_mut_ptr().add(p * out.stride).cast();
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(rows[0], low, rows[1]));
            _mm512_storeu_si512(to.add(1), _mm512_permutex2var_epi16(rows[0], high, rows[1]));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
fn round(x: &[f32], out: &mut [bf16]) {
    let whole = x.len() / 32 * 32;
    for (x, out) in x[..whole].chunks_exact(32).zip(out.chunks_exact_mut(32)) {
        // SAFETY: both pieces have 32 elements.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
        }
    }
    for (x, out) in x[whole..].chunks(16).zip(out[whole..].chunks_mut(16)) {
        let mask = first(x.len().min(out.len()));
        // SAFETY: the mask covers elements of both pieces only.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x.as_ptr()));
            let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, rounded);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
fn store(target: &Target<'_>, tile: Tile<'_>, epilogue: &Epilogue<'_>) {
    let place = target.place(&tile);
    let bias = epilogue.bias.map(|b| &b[tile.cols.0..tile.cols.1]);
    let alpha = _mm512_set1_ps(epilogue.alpha);
    // The usual tiles: no mask, and nothing to decide within.
    match (target.data, place.width, bias, epilogue.accumulate) {
        (Pointer::Bf16(p), 32, None, false) => {
            for (i, r) in (place.rows.0..place.rows.1).enumerate() {
                let sums = &tile.sums[i * tile.stride..][..32];
                // SAFETY: the row's 32 sums were just sliced, and `place` checked its 32 elements of the output.
                unsafe {
                    let low = _mm512_mul_ps(alpha, _mm512_loadu_ps(sums.as_ptr()));
                    let high = _mm512_mul_ps(alpha, _mm512_loadu_ps(sums.as_ptr().add(16)));
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_storeu_si512(p.add(r * place.stride + place.first).cast(), both);
                }
            }
            return;
        }
        (Pointer::F32(p), 32, None, accumulate) => {
            for (i, r) in (place.rows.0..place.rows.1).enumerate() {
                let sums = &tile.sums[i * tile.stride..][..32];
                for j in [0, 16] {
                    // SAFETY: as above.
                    unsafe {
                        let p = p.add(r * place.stride + place.first + j);
                        let mut v = _mm512_mul_ps(alpha, _mm512_loadu_ps(sums.as_ptr().add(j)));
                        if accumulate {
                            v = _mm512_add_ps(v, _mm512_loadu_ps(p));
                        }
                        _mm512_storeu_ps(p, v);
                    }
                }
            }
            return;
        }
        _ => {}
    }
    for (i, r) in (place.rows.0..place.rows.1).enumerate() {
        let sums = &tile.sums[i * tile.stride..][..place.width];
        for j in (0..place.width).step_by(16) {
            let mask = first(place.width - j);
            // SAFETY: the mask covers columns j .. width of the sums, of the bias and of row `r` of the output, which
            // `place` checked and which no other thread holds.
            unsafe {
                let mut v = _mm512_mul_ps(alpha, _mm512_maskz_loadu_ps(mask, sums.as_ptr().add(j)));
                if let Some(bias) = bias {
                    v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(j)));
                }
                let at = r * place.stride + place.first + j;
                match target.data {
                    Pointer::F32(p) => {
                        let p = p.add(at);
                        if epilogue.accumulate {
                            v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, p));
                        }
                        _mm512_mask_storeu_ps(p, mask, v);
                    }
                    Pointer::Bf16(p) => {
                        let p: *mut i16 = p.add(at).cast();
                        if epilogue.accumulate {
                            let old = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
                            v = _mm512_add_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(old)));
                        }
                        let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
                        _mm256_mask_storeu_epi16(p, mask, rounded);
                    }
                    Pointer::F16(_) => return output::store(target, tile, epilogue),
                }
            }
        }
    }
}
