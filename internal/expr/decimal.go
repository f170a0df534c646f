package expr

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
	"github.com/cockroachdb/apd/v3"
)

// decimalType lets decimals be compared and added with the usual operators.
var decimalType = cel.ObjectType("decimal", traits.ComparerType, traits.AdderType, traits.SubtractorType, traits.MultiplierType, traits.DividerType, traits.NegatorType)

// context holds sums and products of any two money amounts exactly.
var context = apd.BaseContext.WithPrecision(100)

// decimal is an exact number in an expression.
type decimal struct{ d *apd.Decimal }

// Decimal makes a value for Row from a number's text. ok is false when text is
// no finite number.
func Decimal(text string) (value any, ok bool) {
	d, _, err := apd.NewFromString(text)
	if err != nil || d.Form != apd.Finite {
		return nil, false
	}
	return decimal{d}, true
}

func decimalFunction() cel.EnvOption {
	from := func(v ref.Val) ref.Val {
		if d, ok := toDecimal(v); ok {
			return d
		}
		if s, ok := v.(types.String); ok {
			if d, ok := Decimal(string(s)); ok {
				return d.(decimal)
			}
		}
		return types.NewErr("decimal(%v): not a number", v.Value())
	}
	return cel.Function("decimal", cel.Overload("decimal_dyn", []*cel.Type{cel.DynType}, cel.DynType, cel.UnaryBinding(from)))
}

func toDecimal(v ref.Val) (decimal, bool) {
	switch v := v.(type) {
	case decimal:
		return v, true
	case types.Int:
		return decimal{apd.New(int64(v), 0)}, true
	case types.Uint:
		d, _, err := apd.NewFromString(strconv.FormatUint(uint64(v), 10))
		return decimal{d}, err == nil
	case types.Double:
		d, err := new(apd.Decimal).SetFloat64(float64(v))
		return decimal{d}, err == nil && d.Form == apd.Finite
	}
	return decimal{}, false
}

func (d decimal) String() string { return d.d.Text('f') }

// ConvertToNative implements ref.Val.
func (d decimal) ConvertToNative(t reflect.Type) (any, error) {
	if t.Kind() == reflect.String {
		return d.String(), nil
	}
	return nil, fmt.Errorf("convert decimal to %s: not supported", t)
}

// ConvertToType implements ref.Val.
func (d decimal) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.StringType:
		return types.String(d.String())
	case types.TypeType:
		return decimalType
	case types.IntType:
		if n, err := d.d.Int64(); err == nil {
			return types.Int(n)
		}
	case types.DoubleType:
		if f, err := d.d.Float64(); err == nil {
			return types.Double(f)
		}
	}
	return types.NewErr("convert decimal %s to %s: not possible", d, t.TypeName())
}

// Equal implements ref.Val.
func (d decimal) Equal(other ref.Val) ref.Val {
	o, ok := toDecimal(other)
	return types.Bool(ok && d.d.Cmp(o.d) == 0)
}

// Type implements ref.Val.
func (d decimal) Type() ref.Type { return decimalType }

// Value implements ref.Val.
func (d decimal) Value() any { return d.String() }

// Compare implements traits.Comparer.
func (d decimal) Compare(other ref.Val) ref.Val {
	o, ok := toDecimal(other)
	if !ok {
		return types.MaybeNoSuchOverloadErr(other)
	}
	return types.Int(d.d.Cmp(o.d))
}

func (d decimal) arithmetic(other ref.Val, f func(z, x, y *apd.Decimal) (apd.Condition, error)) ref.Val {
	o, ok := toDecimal(other)
	if !ok {
		return types.MaybeNoSuchOverloadErr(other)
	}
	z := new(apd.Decimal)
	if cond, err := f(z, d.d, o.d); err != nil || cond.DivisionByZero() {
		return types.NewErr("%s and %s: no exact result", d, o)
	}
	return decimal{z}
}

// Add implements traits.Adder.
func (d decimal) Add(other ref.Val) ref.Val { return d.arithmetic(other, context.Add) }

// Subtract implements traits.Subtractor.
func (d decimal) Subtract(other ref.Val) ref.Val { return d.arithmetic(other, context.Sub) }

// Multiply implements traits.Multiplier.
func (d decimal) Multiply(other ref.Val) ref.Val { return d.arithmetic(other, context.Mul) }

// Divide implements traits.Divider.
func (d decimal) Divide(other ref.Val) ref.Val { return d.arithmetic(other, context.Quo) }

// Negate implements traits.Negater.
func (d decimal) Negate() ref.Val { return decimal{new(apd.Decimal).Neg(d.d)} }

// mixed is an operator between two values of which the right one alone may be a
// decimal. CEL asks the left one what to do, and its own numbers know no decimals.
type mixed struct {
	interpreter.InterpretableCall
	left, right interpreter.InterpretableV2
	apply       func(l, r ref.Val) ref.Val
}

// Exec implements interpreter.InterpretableV2.
func (m *mixed) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	l := m.left.Exec(frame)
	if types.IsUnknownOrError(l) {
		return l
	}
	r := m.right.Exec(frame)
	if types.IsUnknownOrError(r) {
		return r
	}
	if _, ok := r.(decimal); ok {
		if d, ok := toDecimal(l); ok {
			l = d
		}
	}
	out := m.apply(l, r)
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalBinary(frame, m.ID(), m.InterpretableCall, l, r, out)
	}
	return out
}

// Eval implements interpreter.Interpretable.
func (m *mixed) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, m.Exec)
}

// mix puts mixed in the place of the operators that decimals know.
func mix(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || len(call.Args()) != 2 {
		return i, nil
	}
	compare := func(holds func(n types.Int) bool) func(l, r ref.Val) ref.Val {
		return func(l, r ref.Val) ref.Val {
			c, ok := l.(traits.Comparer)
			if !ok {
				return types.MaybeNoSuchOverloadErr(l)
			}
			n, ok := c.Compare(r).(types.Int)
			if !ok {
				return types.MaybeNoSuchOverloadErr(r)
			}
			return types.Bool(holds(n))
		}
	}
	m := &mixed{InterpretableCall: call, left: call.Args()[0], right: call.Args()[1]}
	switch call.Function() {
	case operators.Less:
		m.apply = compare(func(n types.Int) bool { return n < 0 })
	case operators.LessEquals:
		m.apply = compare(func(n types.Int) bool { return n <= 0 })
	case operators.Greater:
		m.apply = compare(func(n types.Int) bool { return n > 0 })
	case operators.GreaterEquals:
		m.apply = compare(func(n types.Int) bool { return n >= 0 })
	case operators.Equals:
		m.apply = types.Equal
	case operators.NotEquals:
		m.apply = func(l, r ref.Val) ref.Val {
			if eq, ok := types.Equal(l, r).(types.Bool); ok {
				return !eq
			}
			return types.MaybeNoSuchOverloadErr(r)
		}
	case operators.In:
		m.apply = in
	case operators.Add:
		m.apply = arithmetic(traits.Adder.Add)
	case operators.Subtract:
		m.apply = arithmetic(traits.Subtractor.Subtract)
	case operators.Multiply:
		m.apply = arithmetic(traits.Multiplier.Multiply)
	case operators.Divide:
		m.apply = arithmetic(traits.Divider.Divide)
	default:
		return i, nil
	}
	return m, nil
}

// in looks for a value in a list, or for a key in a map.
func in(l, r ref.Val) ref.Val {
	list, ok := r.(traits.Lister)
	if !ok {
		if c, ok := r.(traits.Container); ok {
			return c.Contains(l)
		}
		return types.MaybeNoSuchOverloadErr(r)
	}
	d, numeric := toDecimal(l)
	for it := list.Iterator(); it.HasNext() == types.True; {
		el := it.Next()
		if numeric && d.Equal(el) == types.True || !numeric && types.Equal(l, el) == types.True {
			return types.True
		}
	}
	return types.False
}

func arithmetic[T any](f func(l T, r ref.Val) ref.Val) func(l, r ref.Val) ref.Val {
	return func(l, r ref.Val) ref.Val {
		if l, ok := l.(T); ok {
			return f(l, r)
		}
		return types.MaybeNoSuchOverloadErr(l)
	}
}

// adapter makes CEL values of what Row and Event hold.
type adapter struct{}

// NativeToValue implements types.Adapter.
func (adapter) NativeToValue(v any) ref.Val {
	switch v := v.(type) {
	case decimal:
		return v
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return types.Int(n)
		}
		if d, ok := Decimal(v.String()); ok {
			return d.(decimal)
		}
		return types.String(v.String())
	case map[string]any:
		return types.NewStringInterfaceMap(adapter{}, v)
	case []any:
		return types.NewDynamicList(adapter{}, v)
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}
