package recent

import "reflect"

// Size returns about how many bytes a value takes, with everything that it refers to:
// what decoded JSON takes has little to do with its length, as three bytes of a list
// can be an element of a hundred. The value must not refer to itself.
func Size(v any) int {
	of := reflect.ValueOf(v)
	if !of.IsValid() {
		return 0
	}
	return int(of.Type().Size()) + behind(of)
}

// behind is what a value refers to.
func behind(v reflect.Value) (n int) {
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			n = int(v.Elem().Type().Size()) + behind(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			n += behind(v.Field(i))
		}
	case reflect.Slice:
		n = v.Cap() * int(v.Type().Elem().Size())
		for i := range v.Len() {
			n += behind(v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			n += behind(v.Index(i))
		}
	case reflect.Map:
		n = v.Len() * (2*int(v.Type().Key().Size()+v.Type().Elem().Size()) + 2) // up to half of its slots are free
		for it := v.MapRange(); it.Next(); {
			n += behind(it.Key()) + behind(it.Value())
		}
	}
	return n
}
