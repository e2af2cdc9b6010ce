use super::*;
use crate::layout::FORGOTTEN;
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::noise;

/// A layer of pages with keys and values out of matrices, and the layout of sequences of so many new rows, rows before them and row of the
/// matrices where they begin. Their pages lie among each other, in memory that is no number elsewhere, without those that a window hides.
pub(crate) fn paged(
    [k, v]: [&Tensor; 2],
    sequences: &[(usize, usize, usize)],
    window: Option<usize>,
) -> ((KvPages, usize), Layout) {
    let (layers, layer) = (3, 1);
    let mut pages = KvPages::new(layers, k.cols());
    let counts: Vec<usize> = sequences.iter().map(|it| (it.0 + it.1).div_ceil(PAGE)).collect();
    let all = counts.iter().sum::<usize>();
    // Some before the others, so that they lie at several places.
    for count in [1, all / 2, all] {
        pages.grow(k, count);
    }
    for slab in &mut pages.slabs {
        let nothing = Tensor::from_vec(slab.shape(), vec![f32::NAN; slab.len()]).to_dtype(k.dtype());
        slab.put_rows(0, &nothing.to_device(&k.device()).unwrap()).unwrap();
    }
    // From the last to the first, of one sequence and of the next in turn.
    let mut free = (0..all as u32).rev();
    let mut tables = vec![Vec::new(); counts.len()];
    for at in 0..counts.iter().copied().max().unwrap_or(0) {
        let longer = tables.iter_mut().zip(&counts).filter(|it| *it.1 > at);
        longer.for_each(|(table, _)| table.extend(free.next()));
    }
    for ((count, past, first), table) in sequences.iter().zip(&tables) {
        let rows = [k, v].map(|it| it.rows_at(*first, past + count).unwrap());
        let layout = Layout::resumed(&[(past + count, 0, table)]).unwrap();
        append_rows((&mut pages, layer), rows.each_ref(), &layout).unwrap();
    }
    for ((_, past, _), table) in sequences.iter().zip(&mut tables) {
        let hidden = window.map_or(0, |it| (past + 1).saturating_sub(it) / PAGE);
        table[..hidden].fill(FORGOTTEN);
    }
    let all: Vec<_> = sequences.iter().zip(&tables).map(|(it, table)| (it.0, it.1, table.as_slice())).collect();
    ((pages, layer), Layout::resumed(&all).unwrap())
}

fn counted(rows: usize, cols: usize, from: f32) -> Tensor {
    Tensor::from_vec(&[rows, cols], (0..rows * cols).map(|it| from + it as f32).collect())
}

/// All keys and all values in a layer, on the CPU: those of one sequence of a layout after the other.
pub(crate) fn held(pages: &KvPages, layer: usize, layout: &Layout) -> [Tensor; 2] {
    [Half::Keys, Half::Values].map(|half| {
        let mut all = Vec::new();
        for segment in layout.segments() {
            for token in 0..segment.past + segment.count {
                let (slab, at) = pages.places[layout.page_of(segment, token) as usize];
                let row = pages.first_row(at as usize, layer, half) + token % PAGE;
                all.extend(
                    pages.slabs[slab as usize].rows_at(row, 1).unwrap().to_device(&Device::Cpu).unwrap().to_f32_vec(),
                );
            }
        }
        Tensor::from_vec(&[all.len() / pages.channels, pages.channels], all)
    })
}

#[test]
fn rows_come_back_in_their_order_from_pages_that_lie_anywhere() {
    let [k, v] = [1, 2].map(|seed| noise(&[300, 6], DType::F32, seed));
    let ((pages, layer), layout) = paged([&k, &v], &[(3, 130, 0), (1, 0, 140), (70, 58, 150)], None);
    assert!(pages.slabs.len() > 1 && layout.pages().unwrap() != [0, 1, 2, 3, 4, 5]);
    for (held, from) in held(&pages, layer, &layout).iter().zip([&k, &v]) {
        let from = from.data::<f32>();
        let expected = [&from[..133 * 6], &from[140 * 6..141 * 6], &from[150 * 6..278 * 6]].concat();
        assert_eq!(held.data::<f32>(), expected);
    }
    // Other layers' are elsewhere.
    let of_others = [0, 2].into_iter().flat_map(|it| held(&pages, it, &layout));
    assert!(of_others.flat_map(|it| it.to_f32_vec()).all(f32::is_nan));
}

#[test]
fn new_rows_go_behind_those_of_their_sequence() {
    let mut pages = KvPages::new(1, 2);
    pages.grow(&Tensor::zeros(&[1, 2], DType::F32), 3);
    // The first passes from one page to another.
    let layout = Layout::resumed(&[(3, 63, &[2, 0]), (1, 5, &[1])]).unwrap();
    let (k, v) = (counted(4, 2, 1.0), counted(4, 2, 101.0));
    append_rows((&mut pages, 0), [&k, &v], &layout).unwrap();
    let [keys, values] = held(&pages, 0, &layout);
    assert_eq!(keys.data::<f32>()[63 * 2..66 * 2], [1., 2., 3., 4., 5., 6.]);
    assert_eq!(keys.data::<f32>()[71 * 2..], [7., 8.]);
    assert_eq!(values.data::<f32>()[63 * 2..65 * 2], [101., 102., 103., 104.]);
}

#[test]
fn pages_that_come_later_leave_the_others_where_they_are() {
    let mut pages = KvPages::new(2, 4);
    let like = Tensor::zeros(&[1, 4], DType::F32);
    pages.grow(&like, 3);
    let [table, other] = [[2, 0], [3, 1]];
    let layout = Layout::resumed(&[(100, 0, &table)]).unwrap();
    let [k, v] = [1, 2].map(|seed| noise(&[100, 4], DType::F32, seed));
    append_rows((&mut pages, 1), [&k, &v], &layout).unwrap();
    let before: Vec<*const f32> = pages.slabs.iter().map(|it| it.data::<f32>().as_ptr()).collect();
    pages.grow_on(4);
    pages.grow_on(2);
    assert_eq!((pages.len(), pages.bytes()), (4, 4 * 2 * 2 * PAGE * 4 * 4));
    assert!(pages.slabs.iter().map(|it| it.data::<f32>().as_ptr()).zip(before).all(|(now, before)| now == before));
    // A copy has what the other has, and both go on by themselves.
    for (from, to) in table.into_iter().zip(other) {
        pages.copy(from, to).unwrap();
    }
    let [one, two] = [&table, &other].map(|it| Layout::resumed(&[(1, 100, it)]).unwrap());
    let row = |value: f32| Tensor::from_vec(&[1, 4], vec![value; 4]);
    append_rows((&mut pages, 1), [&row(5.0), &row(6.0)], &one).unwrap();
    append_rows((&mut pages, 1), [&row(7.0), &row(8.0)], &two).unwrap();
    for (layout, ends) in [(&one, [5.0, 6.0]), (&two, [7.0, 8.0])] {
        for ((held, from), end) in held(&pages, 1, layout).iter().zip([&k, &v]).zip(ends) {
            assert_eq!(held.data::<f32>(), [from.data::<f32>(), &[end; 4]].concat());
        }
    }
}

#[test]
fn many_pages_are_made_with_some_in_reserve() {
    let grown = |channels: usize| {
        let mut pages = KvPages::new(8, channels);
        let like = Tensor::zeros(&[1, channels], DType::F32);
        (1..100).for_each(|it| pages.grow(&like, it));
        (pages.len(), pages.slabs.len())
    };
    let (pages, slabs) = grown(1);
    assert!((99..112).contains(&pages) && slabs < 60, "{pages} pages in {slabs} pieces");
    // Where a page has 4 MiB, at most four of them.
    let (pages, _) = grown(1024);
    assert!((99..103).contains(&pages), "{pages} pages");
}

#[test]
fn what_fits_no_pages_is_refused() {
    let append = |layer: usize, rows: [&Tensor; 2]| {
        let mut pages = KvPages::new(2, 2);
        pages.grow(&Tensor::zeros(&[1, 2], DType::F32), 1);
        let layout = Layout::resumed(&[(3, 0, &[0])]).unwrap();
        append_rows((&mut pages, layer), rows, &layout).map_err(|e| e.to_string())
    };
    let rows = counted(3, 2, 1.0);
    assert_eq!(append(1, [&rows; 2]), Ok(()));
    assert!(append(2, [&rows; 2]).unwrap_err().contains("got 2 layers"));
    let (short, wide, half) = (counted(2, 2, 1.0), counted(3, 3, 1.0), Tensor::zeros(&[3, 2], DType::F16));
    for other in [&short, &wide] {
        assert!(append(0, [other, &rows]).unwrap_err().contains("rows (3, 2), one a token"));
        assert!(append(0, [&rows, other]).is_err());
    }
    for rows in [[&half, &rows], [&rows, &half], [&half, &half]] {
        assert!(append(0, rows).unwrap_err().contains("in f16"), "pages have the dtype of the first rows");
    }
    let deep = rows.reshape(&[3, 1, 2]).unwrap();
    assert!(append(0, [&deep, &rows]).is_err(), "rows are those of a matrix");
    let mut pages = KvPages::new(1, 2);
    let layout = Layout::resumed(&[(3, 0, &[0])]).unwrap();
    assert!(append_rows((&mut pages, 0), [&rows; 2], &layout).is_err(), "no page was made");
}
