"""What schemathesis has to be told beside the document."""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    # With `?fields=` an answer has less than its schema asks for: that is what the parameter is for,
    # and no schema can say it. The server's own tests try it.
    fields = {"$ref": "#/components/parameters/Fields"}
    for item in raw_schema["paths"].values():
        for operation in item.values():
            parameters = operation.get("parameters", [])
            operation["parameters"] = [one for one in parameters if one != fields]
            # A stream of events is text, as the document says; here that is taken to be each event's.
            for answer in operation.get("responses", {}).values():
                answer.get("content", {}).get("text/event-stream", {}).pop("schema", None)


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    return value if isinstance(value, bytes) else str(value).encode()
