package config

import _ "embed" // for the schemas

//go:embed billhook.schema.json
var billhookSchema string

//go:embed handlers.schema.json
var handlersSchema string

// BillhookSchema returns the JSON Schema of billhook.yaml (draft 2020-12), for
// editors. It knows shapes and sets of values; what one key means to another is
// the loader's to judge.
func BillhookSchema() string { return billhookSchema }

// HandlersSchema returns the JSON Schema of handlers.yaml, as BillhookSchema does
// for billhook.yaml.
func HandlersSchema() string { return handlersSchema }
