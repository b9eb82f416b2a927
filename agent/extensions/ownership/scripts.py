"""What Redis does in one step, as Lua. Keys are always named, so the rights of a Redis user apply to each of them."""

CLAIM = """
-- KEYS: owner, wish and record of each emitter. ARGV: agent, lease and life of a record (ms), questions as JSON:
-- {{action, value, {field, value, ...}}, ...}. Returns {holder, wish, taken, {field, value, ...}} for each.
local me, lease, life = ARGV[1], ARGV[2], ARGV[3]
local answers = {}
for i, ask in ipairs(cjson.decode(ARGV[4])) do
  local owner, wish, record = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local action, value, fields = ask[1], ask[2], ask[3]
  local holder = redis.call('GET', owner) or ''
  local mine = string.match(holder, '^%S+ (.*)$') == me
  local wished, taken, found = '', 0, {}
  if action == 'give' then
    if mine then
      if #fields > 0 then
        redis.call('DEL', record)
        redis.call('HSET', record, unpack(fields))
        redis.call('PEXPIRE', record, life)
      end
      if value == '' then redis.call('DEL', owner) else redis.call('SET', owner, value, 'PX', lease) end
      redis.call('DEL', wish)
      holder = value
    end
  elseif action == 'look' then
    -- nothing is written
  elseif mine or holder == '' then
    if action == 'want' or not mine then
      found = redis.call('HGETALL', record)
      redis.call('HSET', record, ':heir', me)
      if not mine then taken = 1 end
    elseif #fields > 0 then
      redis.call('DEL', record)
      redis.call('HSET', record, unpack(fields))
    end
    redis.call('PEXPIRE', record, life)
    redis.call('SET', owner, value, 'PX', lease)
    holder = value
    wished = redis.call('GET', wish) or ''
    if string.match(wished, '^%S+ (.*)$') == me then
      redis.call('DEL', wish)
      wished = ''
    end
  elseif action == 'want' then
    -- A sidecar goes before a gateway, and nobody asks a sidecar to give way to a gateway.
    local sidecar = string.match(value, '^sidecar ')
    wished = redis.call('GET', wish) or ''
    if sidecar or not (string.match(holder, '^sidecar ') or string.match(wished, '^sidecar ')) then
      redis.call('SET', wish, value, 'PX', lease)
    end
  end
  answers[i] = {holder, wished, taken, found}
end
return answers
"""
"""A claim is its owner's until its lease ends; a record is written by whoever owns the claim, and by nobody else."""

MEMBERS = """
-- KEYS: the gateways, by when they will be gone (ms). ARGV: who I am (empty: only asking), lease (ms), 1 to leave.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[3] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
elseif ARGV[1] ~= '' then
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
"""By the server's clock, which is one for all."""
