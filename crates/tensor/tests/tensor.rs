//! Storage, sharing, conversion.
use halfbyte_tensor::{DType, Float, Tensor, bf16, f16, pool};
use proptest::prelude::*;

#[test]
fn a_write_to_a_shared_tensor_leaves_the_other_owner_alone() {
    let a = Tensor::from_vec(&[2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
    let mut b = a.clone();
    b.add_assign(&a);
    assert_eq!(a.data::<f32>(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(b.data::<f32>(), [2.0, 4.0, 6.0, 8.0]);
}

#[test]
#[should_panic(expected = "into_unique")]
fn a_shared_tensor_cannot_be_written_in_place() {
    let a = Tensor::from_vec(&[1], vec![1.0f32]);
    let mut b = a.clone();
    b.data_mut::<f32>()[0] = 2.0;
}

#[test]
fn reshape_keeps_the_elements_and_refuses_another_size() {
    let a = Tensor::from_vec(&[2, 3], vec![1u32, 2, 3, 4, 5, 6]);
    assert_eq!(a.reshape(&[3, 2]).unwrap().data::<u32>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(a.reshape(&[4]).unwrap_err().to_string(), "reshape: expected 6 elements in all, got shape [4]");
}

#[test]
fn a_buffer_is_reused_and_the_pool_stays_below_the_peak() {
    let make = || Tensor::scratch(&[1 << 16], DType::F32);
    drop((make(), make()));
    let before = pool::stats();
    assert!(before.live + before.cached <= before.limit(), "{before:?}");
    let again = make();
    assert!(pool::stats().peak == before.peak && again.len() == 1 << 16);
    assert!(Tensor::zeros(&[1 << 16], DType::F32).data::<f32>().iter().all(|v| *v == 0.0));
}

#[test]
fn tensors_of_other_sizes_take_the_place_of_what_is_cached() {
    for kib in [300, 500, 400, 640, 270] {
        drop([0; 8].map(|_| Tensor::scratch(&[kib << 10], DType::U8)));
        let it = pool::stats();
        assert!(it.footprint <= it.limit() && it.live + it.cached <= it.limit(), "{kib}: {it:?}");
    }
}

#[test]
fn pages_serve_every_dtype_one_after_the_other() {
    let large = Tensor::from_vec(&[1 << 18], vec![1.5f32; 1 << 18]);
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let it = large.to_dtype(dtype);
        assert!(it.to_f32_vec().iter().all(|v| *v == 1.5), "{dtype}");
        assert!(Tensor::zeros(&[1 << 18], dtype).to_f32_vec().iter().all(|v| *v == 0.0), "{dtype}");
        assert_eq!(it.clone().into_unique().le_bytes(), it.le_bytes(), "{dtype}");
    }
}

#[test]
fn finiteness_is_seen_in_every_dtype() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        assert!(Tensor::from_vec(&[2], vec![1.0f32, -2.0]).to_dtype(dtype).is_finite().unwrap());
        assert!(!Tensor::from_vec(&[2], vec![1.0f32, f32::INFINITY]).to_dtype(dtype).is_finite().unwrap());
        assert!(!Tensor::from_vec(&[2], vec![f32::NAN, 1.0]).to_dtype(dtype).is_finite().unwrap());
    }
}

proptest! {
    #[test]
    fn rounding_equals_the_half_crate(bits in any::<u32>()) {
        let v = f32::from_bits(bits);
        let (ours, theirs) = (<bf16 as Float>::from_f32(v), bf16::from_f32(v));
        prop_assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{v}: {ours:?} {theirs:?}");
        prop_assert!(Float::to_f32(ours).to_bits() == theirs.to_f32().to_bits() || v.is_nan());
    }

    #[test]
    fn a_trip_through_a_wider_dtype_changes_nothing(bits in proptest::collection::vec(any::<u16>(), 1..100)) {
        let n = bits.len();
        let half = Tensor::from_vec(&[n], bits.iter().map(|b| f16::from_bits(*b)).filter(|v| !v.is_nan()).chain(std::iter::repeat(f16::ZERO)).take(n).collect());
        let wide = half.to_dtype(DType::F32);
        let back = wide.to_dtype(DType::F16);
        prop_assert_eq!(back.data::<f16>(), half.data::<f16>());
    }
}

#[test]
fn what_is_converted_to_its_own_dtype_and_not_shared_is_not_copied() {
    let x = Tensor::from_vec(&[3], vec![1.0f32, 2.0, 3.0]);
    let place = x.data::<f32>().as_ptr();
    let x = x.into_dtype(DType::F32).into_unique();
    assert_eq!(x.data::<f32>().as_ptr(), place);
    let shared = x.clone().into_dtype(DType::F32);
    assert!(shared.is_shared() && shared.into_unique().data::<f32>().as_ptr() != place);
    assert_eq!(x.into_dtype(DType::Bf16).dtype(), DType::Bf16);
}
