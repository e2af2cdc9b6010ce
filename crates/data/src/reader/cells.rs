//! Values of arrow arrays as JSON: texts, and what lists of messages are made of.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowDictionaryKeyType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, StructArray};
use arrow_schema::{DataType, Schema};
use serde_json::{Map, Value};

use super::{Column, Kind, Wanted, list};
use crate::error::{Error, Result};

/// The columns of a schema.
pub(super) fn columns(schema: &Schema) -> Vec<Column> {
    schema.fields().iter().map(|f| Column { name: f.name().clone(), kind: f.data_type().to_string() }).collect()
}

/// Where the wanted columns stand in a schema, whose types have to be what they are to hold.
pub(super) fn places(path: &Path, wanted: &[Wanted], schema: &Schema) -> Result<Vec<Option<usize>>> {
    let columns = columns(schema);
    let places = super::places(path, wanted, &columns)?;
    for (wanted, place) in wanted.iter().zip(&places) {
        let Some(found) = place.map(|it| schema.field(it).data_type()) else { continue };
        if !fits(wanted.kind, found) {
            return Err(Error::ColumnType {
                path: path.into(),
                column: wanted.name.clone(),
                found: found.to_string().into(),
                expected: wanted.kind.expected(),
                line: None,
                columns: list(&columns).into(),
            });
        }
    }
    Ok(places)
}

/// Whether values of a type can be had as what a column has to hold.
fn fits(kind: Kind, found: &DataType) -> bool {
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, values) => fits(Kind::Text, values),
        DataType::List(_) | DataType::LargeList(_) => kind == Kind::List,
        _ => false,
    }
}

/// One value. A null is left out of the object that holds it, as if the row had been written without: a column of objects has
/// all the keys of all of them.
///
/// # Errors
/// A type that is not met in texts and messages.
pub(super) fn value(array: &dyn Array, row: usize) -> Result<Value, String> {
    fn number<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> Value
    where
        Value: From<T::Native>,
    {
        Value::from(array.as_primitive::<T>().value(row))
    }
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    let list = |items: ArrayRef| (0..items.len()).map(|i| value(&items, i)).collect::<Result<Vec<_>, _>>();
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Utf8 => Value::from(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Value::from(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Value::from(array.as_string_view().value(row)),
        DataType::Boolean => Value::from(array.as_boolean().value(row)),
        DataType::Int8 => number::<Int8Type>(array, row),
        DataType::Int16 => number::<Int16Type>(array, row),
        DataType::Int32 => number::<Int32Type>(array, row),
        DataType::Int64 => number::<Int64Type>(array, row),
        DataType::UInt8 => number::<UInt8Type>(array, row),
        DataType::UInt16 => number::<UInt16Type>(array, row),
        DataType::UInt32 => number::<UInt32Type>(array, row),
        DataType::UInt64 => number::<UInt64Type>(array, row),
        DataType::Float32 => number::<Float32Type>(array, row),
        DataType::Float64 => number::<Float64Type>(array, row),
        DataType::List(_) => Value::Array(list(array.as_list::<i32>().value(row))?),
        DataType::LargeList(_) => Value::Array(list(array.as_list::<i64>().value(row))?),
        DataType::Struct(_) => Value::Object(object(array.as_struct(), row)?),
        DataType::Dictionary(key, _) => match **key {
            DataType::Int8 => in_dictionary::<Int8Type>(array, row)?,
            DataType::Int16 => in_dictionary::<Int16Type>(array, row)?,
            DataType::Int32 => in_dictionary::<Int32Type>(array, row)?,
            DataType::Int64 => in_dictionary::<Int64Type>(array, row)?,
            ref other => return Err(format!("a dictionary with keys of {other} is not read")),
        },
        other => return Err(format!("{other} is not read")),
    })
}

fn object(fields: &StructArray, row: usize) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, column) in fields.column_names().into_iter().zip(fields.columns()) {
        let found = value(column, row)?;
        if !found.is_null() {
            object.insert(name.to_owned(), found);
        }
    }
    Ok(object)
}

fn in_dictionary<K: ArrowDictionaryKeyType>(array: &dyn Array, row: usize) -> Result<Value, String> {
    let dictionary = array.as_dictionary::<K>();
    dictionary.key(row).map_or(Ok(Value::Null), |key| value(dictionary.values(), key))
}
