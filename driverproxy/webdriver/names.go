package webdriver

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// ExactNames says which member of a JSON object has no field in the struct that v points to. It is for what was decoded into v with unknown
// fields disallowed: encoding/json takes names in any case, and JSON has one.
func ExactNames(b []byte, v any) error { return exactNames(b, reflect.TypeOf(v)) }

func exactNames(b []byte, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var members map[string]json.RawMessage
	if t.Kind() != reflect.Struct || json.Unmarshal(b, &members) != nil { // null, or what reads itself
		return nil
	}
	for name, value := range members {
		f, ok := t.FieldByNameFunc(func(field string) bool {
			f, _ := t.FieldByName(field)
			tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			return tag == name
		})
		if !ok {
			return fmt.Errorf("unknown field %q", name)
		}
		if err := exactNames(value, f.Type); err != nil {
			return err
		}
	}
	return nil
}
